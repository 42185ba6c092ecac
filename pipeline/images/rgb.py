"""Convert any kind of pixels to 8-bit RGB, transparency on white."""

import numpy as np
from PIL import Image

from pipeline.runtime.errors import InputError


def scale_transparent_level(image: Image.Image, content: bytes) -> None:
    """Scale a PNG's transparent level to 8 bits: Pillow scales the pixels only."""
    level = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return
    bits = content[24]  # the header's bit depth
    if bits == 16 and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)
    elif bits < 8 and isinstance(level, int):
        image.info["transparency"] = level * 255 // (2**bits - 1)


def to_rgb(image: Image.Image, what: str) -> Image.Image:
    """Convert an image to RGB, without needless copies: each may take a gigabyte.

    Raises:
        InputError: the range of its pixel values is unknown.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, what)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image, what: str) -> Image.Image:
    """Scale a grey image of more than 8 bits per pixel: Pillow would clip.

    Raises:
        InputError: the value of white is unknown.
    """
    values = np.asarray(image)  # (H, W)
    low, high = values.min(), values.max()
    white = _white_value(image)
    if not (low >= 0 and high <= white):  # also if there is a NaN
        raise InputError(
            f"{what} has pixel values from {low:g} to {high:g}, and the value of white "
            "is unknown; save it with 8 bits per channel"
        )
    if image.mode == "F":
        grey = image.point(lambda value: value * 255 + 0.5).convert("L")
    else:
        grey = image.convert("I").point(lambda value: value / 257).convert("L")
    if isinstance(level := image.info.pop("transparency", None), int):
        grey.info.pop("transparency", None)
        grey.paste(255, mask=Image.fromarray(values == level))
    return grey


def _white_value(image: Image.Image) -> int:
    """Return the pixel value of white, or -1 if it is unknown, as in a TIFF of 32-bit integers."""
    if image.mode == "F":
        return 1  # the convention of TIFF and PFM
    return 65535 if image.mode.startswith("I;16") or image.format == "PPM" else -1
