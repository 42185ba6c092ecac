"""Small images, as JPEG in text, for a page that holds them itself."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images.archive import ImageArchive, decode_image
from pipeline.runtime.progress import progress_bar


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG in base64, and its width and height in pixels."""

    jpeg: str
    width: int
    height: int


def thumbnails(
    archive: Path, image_ids: Sequence[str], side: int, quality: int
) -> Iterator[Thumbnail]:
    """One of each image, in the order of the ids; one image at a time is held.

    Args:
        side: pixels of the longer side; a smaller image stays as it is.
        quality: JPEG's, 1 to 95.

    Raises:
        InputError: an image is absent, damaged or no image; the line names it.
    """
    with ImageArchive(archive) as images:
        for image_id in progress_bar(image_ids, label="thumbnails", unit="image"):
            image = decode_image(images.read(image_id), image_id)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            jpeg = io.BytesIO()
            # Of the pixels alone: no EXIF, no ICC profile, no comment comes along.
            Image.frombytes("RGB", image.size, image.tobytes()).save(
                jpeg, "JPEG", quality=quality, optimize=True
            )
            yield Thumbnail(base64.b64encode(jpeg.getvalue()).decode(), *image.size)
