"""The files of a folder, a zip or a tar, one after the other."""

import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.images.decode import MAX_BYTES
from pipeline.images.names import is_image_name, normalize_path
from pipeline.images.zip_files import decoded_path, is_junk, open_zip, read_member
from pipeline.runtime.errors import InputError

MAX_TEXT_BYTES = 1 << 30  # COCO's captions in Karpathy's format have 150 MB
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".token", ".caption")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_END_OF_TAR = bytes(512)


@dataclass(frozen=True)
class SourceFile:
    """One file: its path in the source (`normalize_path`), and how to read it."""

    path: str
    read: Callable[[], bytes]


def is_text_name(path: str) -> bool:
    """Whether a file may hold captions."""
    return path.lower().endswith(TEXT_SUFFIXES)


def is_archive_name(path: str) -> bool:
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar. Zips that store a tar's first block as it is are not."""
    with path.open("rb") as file:
        return file.read(2) != b"PK" and tarfile.is_tarfile(path)


def iter_files(source: Path) -> Iterator[SourceFile]:
    """Yield the files of a folder, a zip or a tar, or the file itself if it is text.

    The files of a folder come in the order of their paths, without hidden ones. A file of a tar can
    be read until the next one is yielded.

    Raises:
        InputError: the source is damaged or of another kind, or a file is too large.
    """
    if source.is_dir():
        yield from _iter_folder(source)
    elif is_text_name(source.name):
        yield SourceFile(normalize_path(source.name), lambda: _read_file(source))
    elif is_tar(source):
        yield from _iter_tar(source)
    else:
        yield from _iter_zip(source)


def expand_folder(source: Path) -> list[Path]:
    """Return the archives of a folder that holds archives and no images, else the source itself."""
    if not source.is_dir():
        return [source]
    archives = []
    for file in _walk(source):
        if is_image_name(file.name):
            return [source]
        if is_archive_name(file.name):
            archives.append(file)
    return archives or [source]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        # @eaDir is a Synology's: thumbnails of each image.
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "@eaDir")
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _iter_folder(folder: Path) -> Iterator[SourceFile]:
    for file in _walk(folder):
        path = normalize_path(file.relative_to(folder).as_posix())
        if not is_junk(path):
            yield SourceFile(path, lambda file=file: _read_file(file))  # type: ignore[misc]


def _read_file(file: Path) -> bytes:
    limit = MAX_TEXT_BYTES if is_text_name(file.name) else MAX_BYTES
    try:
        _check_size(file.stat().st_size, limit, str(file))
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); repair or remove it") from None


def _iter_zip(source: Path) -> Iterator[SourceFile]:
    with open_zip(source) as archive:
        for member in archive.infolist():
            path = decoded_path(member)
            if not is_junk(path):
                limit = MAX_TEXT_BYTES if is_text_name(path) else MAX_BYTES
                yield SourceFile(
                    normalize_path(path),
                    lambda member=member, limit=limit: read_member(archive, member, limit),  # type: ignore[misc]
                )


def _iter_tar(source: Path) -> Iterator[SourceFile]:
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if not member.isfile() or is_junk(member.name):
                    continue
                limit = MAX_TEXT_BYTES if is_text_name(member.name) else MAX_BYTES
                _check_size(member.size, limit, f"{source}: {member.name!r}")
                yield SourceFile(
                    normalize_path(member.name),
                    lambda member=member: _read_tar_member(archive, member),  # type: ignore[misc]
                )
            # Python takes a tar that ends between two members for a whole one.
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(len(_END_OF_TAR)) != _END_OF_TAR:
                raise tarfile.ReadError("it has no end")
    except _TAR_ERRORS as error:
        raise InputError(
            f"{source} is a truncated or damaged tar ({error}); get it again"
        ) from None


def _read_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a file
    return file.read()


def _check_size(size: int, limit: int, where: str) -> None:
    if size > limit:
        raise InputError(f"{where} has {size} bytes, more than {limit}; make it smaller")
