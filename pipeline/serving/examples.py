"""The photos to click on, from a folder: small, as JPEG, and without their metadata."""

import io
import logging
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.images.decode import load_image
from pipeline.images.names import is_image_name
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

MOST = 12
SIDE = 1024  # pixels of the longer side


class Example(NamedTuple):
    """A photo that the page offers."""

    name: str
    jpeg: bytes


def read_examples(folder: Path) -> list[Example]:
    """Read the first images of a folder, by name. Where a photo was taken is not in the result.

    Raises:
        InputError: the folder does not exist or has no image that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"the folder of examples {folder} does not exist")
    files = [path for path in sorted(folder.iterdir()) if is_image_name(path.name)]
    examples = []
    for path in files[:MOST]:
        try:
            examples.append(Example(path.stem, _shrink(load_image(path))))
        except InputError as error:
            log.warning("not an example: %s", error)
    if not examples:
        raise InputError(f"the folder of examples {folder} has no image that can be read")
    return examples


def _shrink(image: Image.Image) -> bytes:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    bare = Image.new("RGB", image.size)  # without EXIF and the like
    bare.paste(image)
    bare.save(out, "JPEG", quality=90)
    return out.getvalue()
