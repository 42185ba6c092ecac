"""From any kind of pixels to red, green and blue in 8 bits each, transparency on white."""

import numpy as np
from PIL import Image

from pipeline.runtime.errors import InputError


def scale_transparent_level(image: Image.Image, content: bytes) -> None:
    """A PNG names its transparent level in its own bits a channel, which Pillow scales to 8 in the
    pixels and not there."""
    level = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return
    bits = content[24]  # of the header, which comes first
    if bits == 16 and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)
    elif bits < 8 and isinstance(level, int):
        image.info["transparency"] = level * 255 // (2**bits - 1)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, name)
    if image.has_transparency_data:
        # No copy that is not needed: each may be a gigabyte.
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """A grey image of more than 8 bits a pixel, scaled: Pillow would clip.

    Raises:
        InputError: nobody can tell which of its numbers is white.
    """
    values = np.asarray(image)  # (H, W)
    low, high = values.min(), values.max()
    white = _white(image)
    if not (low >= 0 and high <= white):  # as it is, too, where there is a NaN
        raise InputError(
            f"the image {name} has numbers from {low:g} to {high:g} for its pixels, and nothing "
            "says which of them is white; save it with 8 bits a channel"
        )
    if image.mode == "F":
        grey = image.point(lambda value: value * 255 + 0.5).convert("L")
    else:
        grey = image.convert("I").point(lambda value: value / 257).convert("L")
    if isinstance(level := image.info.pop("transparency", None), int):
        grey.info.pop("transparency", None)
        grey.paste(255, mask=Image.fromarray(values == level))
    return grey


def _white(image: Image.Image) -> int:
    """The number that is white; below 0 where nobody knows: in a TIFF of 32 bits, say."""
    if image.mode == "F":
        return 1  # by TIFF's and PFM's custom
    return 65535 if image.mode.startswith("I;16") or image.format == "PPM" else -1
