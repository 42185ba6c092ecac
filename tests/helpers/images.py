"""Small images as file contents."""

import io
from typing import Any

from PIL import Image


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


def scene(mode: str = "RGB", size: tuple[int, int] = (90, 60)) -> Image.Image:
    """An image that is red on the left and blue on the right."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)
