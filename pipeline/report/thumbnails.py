"""Thumbnails as base64 JPEG, which the page embeds."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.images.archive import ImageArchive
from pipeline.images.decode import decode_image
from pipeline.runtime.progress import progress_bar


class Thumbnail(NamedTuple):
    """A base64 JPEG, with its width and height in pixels."""

    width: int
    height: int
    jpeg: str


def thumbnails(
    archive: Path, image_ids: Sequence[str], size: int, quality: int
) -> Iterator[Thumbnail]:
    """Yield a thumbnail per image, in the order of the ids, with one image in memory at a time.

    Args:
        size: pixels of the longer side; a smaller image keeps its size.
        quality: of the JPEG, 1 to 95.

    Raises:
        InputError: an image is missing, damaged or not an image; the message names it.
    """
    with ImageArchive(archive) as images:
        for image_id in progress_bar(image_ids, label="thumbnails", unit="image"):
            image = decode_image(images.read(image_id), image_id)
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            jpeg = io.BytesIO()
            # Pixels only: this drops EXIF data, ICC profiles and comments.
            Image.frombytes("RGB", image.size, image.tobytes()).save(
                jpeg, "JPEG", quality=quality, optimize=True
            )
            yield Thumbnail(*image.size, base64.b64encode(jpeg.getvalue()).decode())
