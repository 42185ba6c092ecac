"""From any kind of pixels to red, green and blue in 8 bits each, transparency on white."""

import numpy as np
from PIL import Image

from pipeline.errors import InputError


def scale_transparent_level(picture: Image.Image, content: bytes) -> None:
    """A PNG names its transparent level in its own bits a channel, which Pillow scales to 8 in the
    pixels and not there."""
    level = picture.info.get("transparency")
    if picture.format != "PNG" or picture.mode not in ("L", "RGB"):
        return
    bits = content[24]  # of the header, which comes first
    if bits == 16 and isinstance(level, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in level)
    elif bits < 8 and isinstance(level, int):
        picture.info["transparency"] = level * 255 // (2**bits - 1)


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _to_8_bits(picture, name)
    if picture.has_transparency_data:
        # No copy that is not needed: each may be a gigabyte.
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which copies


def _to_8_bits(picture: Image.Image, name: str) -> Image.Image:
    """A grey picture of more than 8 bits a pixel, scaled: Pillow would clip.

    Raises:
        InputError: nobody can tell which of its numbers is white.
    """
    values = np.asarray(picture)  # (H, W)
    low, high = values.min(), values.max()
    white = _white(picture)
    if not (low >= 0 and high <= white):  # as it is, too, where there is a NaN
        raise InputError(
            f"the picture {name} has numbers from {low:g} to {high:g} for its pixels, and nothing "
            "says which of them is white; save it with 8 bits a channel"
        )
    if picture.mode == "F":
        grey = picture.point(lambda value: value * 255 + 0.5).convert("L")
    else:
        grey = picture.convert("I").point(lambda value: value / 257).convert("L")
    if isinstance(level := picture.info.pop("transparency", None), int):
        grey.info.pop("transparency", None)
        grey.paste(255, mask=Image.fromarray(values == level))
    return grey


def _white(picture: Image.Image) -> int:
    """The number that is white; below 0 where nobody knows: in a TIFF of 32 bits, say."""
    if picture.mode == "F":
        return 1  # by TIFF's and PFM's custom
    return 65535 if picture.mode.startswith("I;16") or picture.format == "PPM" else -1
