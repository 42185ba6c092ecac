"""Decode images of any source to upright RGB."""

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.images.rgb import scale_transparent_level, to_rgb
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)


@runtime_checkable
class BinaryFile(Protocol):
    """A file opened in binary mode, or anything else to read bytes from."""

    def read(self, size: int = ..., /) -> bytes: ...


# A path, the content of an image file, an open one, an image of Pillow's, or pixels: uint8
# (H, W, 3).
ImageSource = str | Path | bytes | BinaryFile | Image.Image | NDArray[np.uint8]

# Formats that Pillow decodes by itself: for EPS it runs Ghostscript, which runs programs. The MPO
# files of phones begin as JPEG and are opened as such.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

JPEG_END = b"\xff\xd9"

# Larger than any camera's image: beyond this it is a mistake or a decompression bomb.
MAX_PIXELS = 200_000_000
MAX_ASPECT = 50  # resized by its shorter side, a row of pixels would become gigabytes
MAX_BYTES = 128 << 20  # per image file
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, and warns without the image's name


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        InputError: the file cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(
                    f"the image {path} has {size} bytes, more than {MAX_BYTES}; make it smaller"
                )
            return file.read(MAX_BYTES)  # a device has no size and no end
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror})") from None


def decode_image(content: bytes, name: str | None) -> Image.Image:
    """Decode an image to RGB: rotated upright by its EXIF tag, transparency on white.

    Raises:
        InputError: the file is empty, not an image, truncated, or absurdly large or thin.
    """
    what = _what(name)
    if not content:
        raise InputError(f"{what} is empty; replace or remove it")
    try:
        faults: list[str] = []
        with _collect_warnings(faults):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.format == "TIFF":  # later, Pillow would read it while it decodes pixels
                image.getexif()
        _check_size(*image.size, what)
        image.load()
        with _collect_warnings(faults):
            image.getexif()
        for fault in dict.fromkeys(faults):
            log.warning("%s has a fault but can be read: %s", what, fault)
        scale_transparent_level(image, content)
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, what)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{name or what} is not an image of a supported format ({' '.join(FORMATS)}); "
            "convert or remove it"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        if repaired := _add_end_marker(content):
            log.warning("%s has no end marker but can be read", what)
            return decode_image(repaired, name)
        raise InputError(f"{what} cannot be decoded ({error}); replace or remove it") from None


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read an image from wherever it is, as RGB: a file, its content, or pixels.

    Args:
        name: what messages call it; by default its path, if it has one.

    Raises:
        InputError: it cannot be read or decoded, or is of another type.
    """
    what = _what(name)
    match source:
        case str() | Path():
            return decode_image(read_image(Path(source)), name or str(source))
        case bytes():
            return decode_image(source, name)
        case np.ndarray():
            source = _from_pixels(source, what)
        case Image.Image():
            pass
        case BinaryFile():
            return decode_image(_read_file(source, what), name)
        case _:
            raise InputError(
                f"{what} is of the type {type(source).__name__}; give a path, an open file or its "
                "bytes, an image of Pillow's, or an array of uint8 (H, W, 3)"
            )
    _check_size(*source.size, what)
    return to_rgb(ImageOps.exif_transpose(source), what)


def _what(name: str | None) -> str:
    """What messages call an image."""
    return "the image" if name is None else f"the image {name}"


def _read_file(file: BinaryFile, what: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise InputError(f"{what} is a file opened as text; open it in binary mode, 'rb'")
    if len(content) > MAX_BYTES:
        raise InputError(f"{what} has more than {MAX_BYTES} bytes; make it smaller")
    return content


def _from_pixels(pixels: NDArray[Any], what: str) -> Image.Image:
    """uint8 (H, W), (H, W, 1), or (H, W, 3) or (H, W, 4) with transparency."""
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (2, 3)
        or pixels.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise InputError(
            f"the array of {what} is {pixels.dtype} {pixels.shape}, but must be uint8 (H, W, 3)"
        )
    if 0 in pixels.shape:
        raise InputError(f"the array of {what} is empty")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _check_size(width: int, height: int, what: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{what} is {width} x {height}, more than "
            f"{MAX_PIXELS // 1_000_000} megapixels; make it smaller or remove it"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{what} is {width} x {height}, one side more than {MAX_ASPECT} times "
            "the other; crop it or remove it"
        )


_warnings_lock = threading.Lock()


@contextmanager
def _collect_warnings(messages: list[str]) -> Iterator[None]:
    """Add Pillow's warnings to `messages`: they do not name the image.

    All threads share Python's warning filters, so only code that reads a header runs in here.
    """
    with _warnings_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages += [
        " ".join(str(warning.message).split()) for warning in caught if "PIL" in warning.filename
    ]


def _add_end_marker(content: bytes) -> bytes | None:
    """Append the end marker to a JPEG that lacks nothing else; return None for any other file.

    If more is missing, the decoder takes what follows for pixels: two endings give two images.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    plain, padded = (content + padding + JPEG_END for padding in (b"", b"\x55" * 64))
    try:
        with _collect_warnings([]):
            first, second = (
                Image.open(io.BytesIO(file), formats=["JPEG"]) for file in (plain, padded)
            )
        complete = "progressive" not in first.info or _has_all_scans(content)
        return plain if complete and first.tobytes() == second.tobytes() else None
    except Exception:  # Pillow's decoders raise almost anything
        return None


def _has_all_scans(content: bytes) -> bool:
    """Whether a progressive JPEG's scans refine every coefficient to its last bit."""
    frame = content.rfind(b"\xff\xc2")  # after a thumbnail, which may have scans of its own
    components, refined = set[int](), set[tuple[int, int]]()
    for scan in re.finditer(rb"\xff\xda..", content[frame:], re.DOTALL):
        header = content[frame + scan.end() :]
        scanned = header[1 : 1 + 2 * header[0] : 2]
        first, last, bits = header[1 + 2 * header[0] : 4 + 2 * header[0]]
        components |= set(scanned)
        if bits & 15 == 0:
            refined |= {
                (component, index) for component in scanned for index in range(first, last + 1)
            }
    return len(refined) == 64 * len(components)
