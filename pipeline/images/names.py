"""Image ids: what an image is called in an archive, in captions and in split lists, as one name.

An id is the file's name without its folders, in Unicode's composed form (NFC): macOS writes names
decomposed, and the two look the same.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pipeline.runtime.errors import InputError

# What is taken for an image.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm".split()
)
MAX_NAME = 255  # bytes, as file systems have it: the cache keeps room for the longest for each
SHOWN = 5  # of a list of names, in a message


def slashes(path: str) -> str:
    """A path with `/` between folders, wherever it was written: Windows writes a backslash."""
    return path.replace("\\", "/")


def to_image_id(path: str) -> str:
    """The id of the image at this path."""
    return unicodedata.normalize("NFC", PurePosixPath(slashes(path)).name)


def is_image_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def check_id(image_id: str, where: str) -> None:
    """
    Raises:
        InputError: the id is empty, or would do something where it is shown: move a terminal's
            cursor, say, or be computed by a spreadsheet.
    """
    if not image_id:
        raise InputError(f"{where}: no image is named")
    if len(image_id.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise InputError(
            f"{where}: an image is called {image_id[:40]!r}… and on; {MAX_NAME} bytes may do"
        )
    if not image_id.isprintable() or image_id.startswith(("=", "+", "-", "@")):
        raise InputError(
            f"{where}: an image may not be called {image_id!r}; names are printable and do not "
            "begin with = + - @"
        )


def some(names: Sequence[str]) -> str:
    """The first few of them, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


def alike(names: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """For a name that is not there, one that is and that may be meant: the same but for case,
    suffix, blanks or the form of its letters."""
    there: dict[str, str] = {}
    for one in present:
        there.setdefault(_folded(one), one)
        there.setdefault(_folded(PurePosixPath(one).stem), one)
    pairs = {}
    for name in names:
        stem = PurePosixPath(name).stem if is_image_name(name) else name
        if meant := there.get(_folded(name)) or there.get(_folded(stem)):
            pairs[name] = meant
    return pairs


def _folded(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
