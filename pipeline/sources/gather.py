"""Bring the sources that params name to this machine: fetch URLs, find files and folders."""

import glob
import logging
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from pipeline.images.names import is_image_name
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import file_digest, named_path
from pipeline.sources.containers import expand_folder, is_tar, is_text_name
from pipeline.sources.fetch import fetch, is_zip_name

log = logging.getLogger(__name__)

OTHER_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class Source:
    """One source of params: a URL, or a path that may have `*`."""

    url: str | None
    path: str  # of the URL, if it is one
    md5: str | None
    key: str  # of params, for messages

    def is_zip(self) -> bool:
        """Whether it is one zip; a file of no known kind counts as a damaged one.

        Raises:
            InputError: it does not exist, or is of a kind that is not read.
        """
        if self.url is not None:
            return is_zip_name(self.path)
        if glob.has_magic(self.path) and not Path(self.path).exists():
            return False
        path = named_path(self.path, self.key)
        if is_image_name(path.name):
            raise InputError(f"{self.key} names {path}, one image; name a folder, a zip or a tar")
        if path.suffix.lower() in OTHER_TABLES:
            raise InputError(
                f"{self.key} names {path}, which is not read; save it as CSV in UTF-8 or as JSON"
            )
        if path.is_dir() or is_text_name(path.name):
            return False
        return not is_tar(path)

    def paths(self) -> list[Path]:
        """Return the local files or folders.

        Raises:
            InputError: there is none.
        """
        if not glob.has_magic(self.path) or Path(self.path).exists():
            return [named_path(self.path, self.key)]
        found = sorted(glob.glob(self.path, recursive=True))  # noqa: PTH207  may be absolute
        if not found:
            raise InputError(f"{self.key} names {self.path}, but there is no such file")
        return [Path(path) for path in found]


def parse_sources(sources: Sequence[str], md5s: Sequence[str] | None, key: str) -> list[Source]:
    """Parse what a param names.

    Raises:
        InputError: it is not a URL that can be fetched.
    """
    digests: Sequence[str | None] = md5s or [None] * len(sources)
    return [_parse(source, md5, key) for source, md5 in zip(sources, digests, strict=True)]


def _parse(source: str, md5: str | None, key: str) -> Source:
    try:
        url = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise InputError(f"{key} is {source}, not a URL ({error}); check it") from None
    if url.scheme in ("http", "https"):
        return Source(source, urllib.parse.unquote(url.path), md5, key)
    if url.scheme == "file":
        return Source(None, urllib.parse.unquote(url.path), md5, key)
    if "://" in source:
        raise InputError(
            f"cannot fetch {source}: expected an http://, https:// or file:// URL, or a path"
        )
    return Source(None, os.path.expanduser(source), md5, key)  # noqa: PTH111


def check_md5(path: Path, md5: str | None, key: str) -> None:
    """Compare a local file's digest with that of params.

    Raises:
        InputError: it has another one, or is a folder, which has none.
    """
    if md5 is None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder and has no MD5; set {key}_md5 to null")
    if (digest := file_digest(path)) != md5:
        raise InputError(
            f"{path} has MD5 {digest}, but {key}_md5 is {md5}; it is another file, "
            f"or damaged; set {key}_md5 to null to accept any"
        )


@contextmanager
def gathered(
    sources: Sequence[Source], folder: Path, *, retries: int, timeout: float
) -> Iterator[list[Path]]:
    """Yield the local files and folders of all sources; delete at the end what was fetched.

    After an error or a kill, what was fetched stays: the next run goes on from there. A folder of
    archives stands for the archives.

    Args:
        folder: where to put what is fetched.

    Raises:
        InputError: a source is not available, or has another digest.
    """
    found: list[Path] = []
    fetched: list[Path] = []

    seen: set[Path] = set()

    def add(paths: Sequence[Path], key: str) -> None:
        for path in paths:
            if path.resolve() in seen:
                log.warning("%s names %s twice; it is read once", key, path)
            else:
                seen.add(path.resolve())
                found.append(path)

    for source in sources:
        if source.url is not None:
            name = PurePosixPath(source.path).name or "source"
            path = folder / f"{sha256(source.url.encode()).hexdigest()[:8]}-{name}"
            if not path.is_file() or (source.md5 and file_digest(path) != source.md5):
                fetch(source.url, path, source.md5, retries=retries, timeout=timeout)
            fetched.append(path)
            add([path], source.key)
            continue
        for path in source.paths():
            check_md5(path, source.md5, source.key)
            add(expand_folder(path), source.key)
    yield found
    for path in fetched:
        path.unlink(missing_ok=True)
