"""Small pictures, as JPEG in text, for a page that holds them itself."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.progress import bar
from pipeline.store.pictures import PictureArchive, decode_picture


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG in base64, and its width and height in pixels."""

    jpeg: str
    width: int
    height: int


def thumbnails(
    archive: Path, image_ids: Sequence[str], side: int, quality: int
) -> Iterator[Thumbnail]:
    """One of each picture, in the order of the ids; one picture at a time is held.

    Args:
        side: pixels of the longer side; a smaller picture stays as it is.
        quality: JPEG's, 1 to 95.

    Raises:
        InputError: a picture is absent, damaged or no picture; the line names it.
    """
    with PictureArchive(archive) as pictures:
        for image_id in bar(image_ids, label="thumbnails", unit="picture"):
            picture = decode_picture(pictures.content(image_id), image_id)
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            jpeg = io.BytesIO()
            # Of the pixels alone: no EXIF, no ICC profile, no comment comes along.
            Image.frombytes("RGB", picture.size, picture.tobytes()).save(
                jpeg, "JPEG", quality=quality, optimize=True
            )
            yield Thumbnail(base64.b64encode(jpeg.getvalue()).decode(), *picture.size)
