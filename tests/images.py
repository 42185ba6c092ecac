"""Small images as files' contents."""

import io
from typing import Any

from PIL import Image


def jpeg(image: Image.Image, **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, options.pop("format", "JPEG"), **options)
    return made.getvalue()


def scene(mode: str = "RGB", size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Red to the left, blue to the right."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)
