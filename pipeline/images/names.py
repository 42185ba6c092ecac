"""Image ids: one name for an image in archives, captions and split lists.

An id is the image's path within its data set, without the folders that all images share, in
Unicode's composed form (NFC): macOS writes names decomposed, and the two look the same.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import PurePosixPath

from pipeline.runtime.errors import InputError

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm".split()
)
# Formats of images that are not read, to name in messages.
UNSUPPORTED = frozenset(
    ".heic .heif .avif .jxl .jp2 .svg .eps .psd .ico .dng .cr2 .cr3 .nef .arw .raf .raw".split()
)
MAX_ID = 512  # bytes: the feature cache stores all ids at the longest one's size
MAX_SHOWN = 10  # names in a message


def to_posix(path: str) -> str:
    """Return a path with `/` between folders: zips made on Windows may have backslashes."""
    return path.replace("\\", "/")


def normalize_path(path: str) -> str:
    """Return a path with `/` between folders, in NFC, without a leading `/`, `.` or `..`."""
    path = to_posix(path)
    if not path.isascii():
        path = unicodedata.normalize("NFC", path)
    if path[:1] not in ("", "/", ".") and path[-1] != "/" and "//" not in path and "/." not in path:
        return path  # as most are: a zip may have a million
    parts = path.split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def common_folder(paths: Iterable[str]) -> str:
    """Return the deepest folder that holds all paths, with a `/` at its end; or ""."""
    folders = [
        path.split("/")[:-1] for path in {"".join(path.rpartition("/")[:2]) for path in paths}
    ]
    shared = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    names = takewhile(lambda pair: pair[0] == pair[1], shared)
    return "".join(f"{name}/" for name, _ in names)


def is_image_name(name: str) -> bool:
    return _extension(name) in EXTENSIONS


def is_unsupported_name(name: str) -> bool:
    """Whether a file is an image of a format that is not read."""
    return _extension(name) in UNSUPPORTED


def _extension(path: str) -> str:
    """As `PurePosixPath.suffix`, in lower case, and much faster: a zip may have a million names."""
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return (dot + extension).lower() if stem and extension else ""


def check_id(image_id: str, where: str) -> None:
    """Check that an id is safe to display.

    Raises:
        InputError: the id is empty or too long, or could have an effect where it is displayed:
            move a terminal's cursor, say, or run as a spreadsheet's formula.
    """
    if not image_id:
        raise InputError(f"{where}: the image's name is missing")
    if len(image_id.encode("utf-8", "surrogatepass")) > MAX_ID:
        raise InputError(
            f"{where}: the image name {image_id[:40]!r}… is longer than {MAX_ID} bytes; rename it"
        )
    if not image_id.isprintable() or image_id.startswith(("=", "+", "-", "@")):
        raise InputError(
            f"{where}: the image name {image_id!r} is not allowed; names must be printable and "
            "must not begin with = + - @; rename it"
        )


def first_few(names: Sequence[str]) -> str:
    """Return the first few names, quoted, and the number of the others."""
    shown = ", ".join(map(repr, names[:MAX_SHOWN]))
    return shown if len(names) <= MAX_SHOWN else f"{shown} and {len(names) - MAX_SHOWN:,} more"


def similar_names(missing: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """Map missing names to similar names that are present.

    Similar names differ in case, suffix, spaces or the form of their letters only.
    """
    by_key: dict[str, str] = {}
    for name in present:
        for key in _comparison_keys(name):
            by_key.setdefault(key, name)
    similar = {}
    for name in missing:
        known = [key for key in _comparison_keys(name) if key in by_key]
        if known:
            similar[name] = by_key[known[0]]
    return similar


def _comparison_keys(path: str) -> list[str]:
    """Return keys of the path and of its name, each with and without the suffix."""
    whole = PurePosixPath(path)
    bare = whole.with_suffix("") if is_image_name(path) else whole
    return [_comparison_key(key) for key in (path, str(bare), whole.name, bare.name)]


def _comparison_key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
