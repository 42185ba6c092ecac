"""The photos that a user names: files, folders, patterns, addresses, and standard input."""

import glob
import http.client
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.images.decode import MAX_BYTES
from pipeline.images.names import EXTENSIONS, first_few, is_image_name
from pipeline.runtime.errors import InputError, pluralize

log = logging.getLogger(__name__)

STDIN = "-"
TIMEOUT = 30.0  # seconds without data


@dataclass(frozen=True)
class Photo:
    """One image, not read yet."""

    name: str  # as messages and results call it
    error: InputError | None = None  # why there is none

    def read(self) -> Path | bytes:
        """Return the path of a file, or the content of another source.

        Raises:
            InputError: there is none.
        """
        if self.error:
            raise self.error
        if self.name == STDIN:
            return _limited(sys.stdin.buffer.read(MAX_BYTES + 1), "of standard input")
        return _fetch(self.name) if is_address(self.name) else Path(self.name)


def find_photos(names: Sequence[str]) -> list[Photo]:
    """Find the photos of these names, in order, each once: a folder stands for all images in it,
    however deep, and a pattern for all that match, sorted. A name of nothing becomes a Photo with
    an error, so that the others are captioned.

    Raises:
        InputError: all are names of nothing.
    """
    found = {photo.name: photo for name in names for photo in _find(name)}
    errors = [photo.error for photo in found.values() if photo.error]
    if errors and len(errors) == len(found):
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    return list(found.values())


def is_address(name: str) -> bool:
    return "://" in name


def _find(name: str) -> Iterator[Photo]:
    path = Path(name)
    if name == STDIN or path.is_file():
        yield Photo(name)
    elif is_address(name):
        if urlsplit(name).scheme in ("http", "https"):
            yield Photo(name)
        else:
            yield Photo(name, InputError(f"{name} is not an address of http or https"))
    elif path.is_dir():
        yield from _in_folder(path)
    elif path.exists():  # a pipe or a device
        yield Photo(name)
    elif matches := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207, absolute ones too
        for match in matches:
            yield from _in_folder(Path(match)) if Path(match).is_dir() else [Photo(match)]
    else:
        yield Photo(name, InputError(f"the image {name} does not exist; check the path"))


def _in_folder(folder: Path) -> Iterator[Photo]:
    """Images in the folder and its subfolders, except hidden ones; others are logged."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    if others := [str(path.relative_to(folder)) for path in files if not is_image_name(path.name)]:
        skipped = pluralize(len(others), "file")
        log.warning(
            "skipped in %s: %s of unsupported formats: %s", folder, skipped, first_few(others)
        )
    images = [path for path in files if is_image_name(path.name)]
    if not images:
        formats = " ".join(sorted(EXTENSIONS))
        yield Photo(str(folder), InputError(f"the folder {folder} has no images ({formats})"))
    yield from (Photo(str(path)) for path in images)


def _fetch(address: str) -> bytes:
    """Fetch an image.

    Raises:
        InputError: the server does not answer, or not with a file of a sensible size.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "showtell"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return _limited(answer.read(MAX_BYTES + 1), f"at {address}")
    except urllib.error.HTTPError as error:
        raise InputError(f"{address} cannot be fetched: HTTP {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{address} cannot be fetched: {reason}") from None


def _limited(content: bytes, where: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise InputError(f"the image {where} has more than {MAX_BYTES} bytes; make it smaller")
    return content
