"""Zips: opened, told from what is none, and read member by member, never unpacked."""

import os
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pipeline.images.names import slashes
from pipeline.runtime.errors import ArtifactError, InputError

OTHER_ARCHIVES = (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!")  # in lower case
ENCRYPTED, UTF8 = 0x1, 0x800  # of a member's flags; UTF8: its name is
LOCAL_HEADER = 30  # bytes before a member's name
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip, saying what it is where it is none.

    Raises:
        InputError: the file is absent, a web page, or no whole zip.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        with path.open("rb") as content:
            begin = content.read(512).lstrip().lower()
        if begin.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            what = "a web page, not a zip: the address leads to a page about the file"
        elif begin.startswith(OTHER_ARCHIVES):
            raise InputError(
                f"{path} is an archive, but no zip; pack what it holds as one"
            ) from None
        elif not begin:
            what = "empty"
        elif begin.startswith(b"pk"):
            what = "a truncated or damaged zip"
        else:
            what = "no zip"
        raise InputError(f"{path} is {what}; check the address and fetch it again") from None


def path_of(member: zipfile.ZipInfo) -> str:
    """A member's path, with `/` between folders.

    macOS's Finder writes UTF-8 and does not say so; then Python takes it for DOS's letters.
    """
    name = member.filename
    if not member.flag_bits & UTF8:
        with suppress(UnicodeError):  # DOS's letters they are
            name = name.encode("cp437").decode("utf-8")
    return slashes(name)


def is_junk(path: str) -> bool:
    """Folders and what macOS adds to a zip."""
    parts = PurePosixPath(path).parts
    return not parts or path.endswith("/") or "__MACOSX" in parts or parts[-1].startswith("._")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """A file of a zip, its checksum verified.

    Args:
        most: bytes that it may have; zipfile unpacks no more than the zip says that it has.

    Raises:
        InputError: it is damaged, encrypted, or larger.
    """
    where = f"{archive.filename}: {member.filename!r}"
    if member.file_size > most:
        raise InputError(f"{where} has {member.file_size} bytes, more than {most}; is it a bomb?")
    content = _read_directly(archive, member)
    if content is not None:
        return content
    try:
        return archive.read(member)
    except MemoryError:
        raise
    except Exception as error:  # zlib, lzma, bz2 and zipfile raise their own kinds
        raise InputError(f"{where} cannot be unpacked ({error}); fetch the archive again") from None


def _read_directly(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
    """A whole, plain member's content, read without Python's lock and without a place in the file,
    so that any number of threads share the archive; None for what zipfile has to look at."""
    if member.flag_bits & ENCRYPTED or member.compress_type not in _PLAIN or archive.fp is None:
        return None
    try:
        file = archive.fp.fileno()
        header = os.pread(file, LOCAL_HEADER, member.header_offset)
        if header[:4] != b"PK\3\4":
            return None
        name, extra = struct.unpack("<HH", header[26:30])
        begin = member.header_offset + LOCAL_HEADER + name + extra
        content = os.pread(file, member.compress_size, begin)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            # One byte more than it has: for 0 zlib would unpack all there is.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
    except (OSError, struct.error, zlib.error):
        return None
    whole = len(content) == member.file_size and zlib.crc32(content) == member.CRC
    return content if whole else None
