"""Open zips and read their members one by one, without unpacking the archive."""

import os
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from pipeline.images.names import to_posix
from pipeline.runtime.errors import ArtifactError, InputError

OTHER_ARCHIVES = (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!")  # in lower case
ENCRYPTED, UTF8_NAME = 0x1, 0x800  # member flags
LOCAL_HEADER = 30  # bytes before a member's name
_DIRECT_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip; for any other file, the error says what the file looks like.

    Raises:
        InputError: the file is missing, a web page, or not a complete zip.
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
                f"{path} is an archive of a kind that is not read; pack its files into a zip or tar"
            ) from None
        elif not begin:
            what = "empty"
        elif begin.startswith(b"pk"):
            what = "a truncated or damaged zip"
        else:
            what = "not a zip"
        raise InputError(f"{path} is {what}; check the address and fetch it again") from None


def decoded_path(member: zipfile.ZipInfo) -> str:
    """Return a member's path, with `/` between folders.

    macOS's Finder writes UTF-8 without its flag, and Python then decodes it as cp437.
    """
    return decode_name(member.filename, member.flag_bits)


def decode_name(name: str, flags: int) -> str:
    """As `decoded_path`, of a member's name and flags."""
    if not flags & UTF8_NAME and not name.isascii():
        with suppress(UnicodeError):  # it is cp437
            name = name.encode("cp437").decode("utf-8")
    return to_posix(name)


def is_junk(path: str) -> bool:
    """Whether a member is a folder or one of the files that macOS adds to a zip."""
    parts = path.split("/")
    return not parts[-1] or "__MACOSX" in parts or parts[-1].startswith("._")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """Return the content of a zip's member; verify its checksum.

    Args:
        max_bytes: the limit of its size; zipfile unpacks no more than the size in the directory.

    Raises:
        InputError: the member is damaged, encrypted, or larger.
    """
    where = f"{archive.filename}: {member.filename!r}"
    if member.file_size > max_bytes:
        raise InputError(
            f"{where} has {member.file_size} bytes, more than {max_bytes}; is it a bomb?"
        )
    if archive.fp and (content := read_directly(archive.fp.fileno(), member)) is not None:
        return content
    try:
        return archive.read(member)
    except MemoryError:
        raise
    except Exception as error:  # zlib, lzma, bz2 and zipfile raise their own kinds
        raise InputError(f"{where} cannot be unpacked ({error}); fetch the archive again") from None


def read_directly(file: int, member: zipfile.ZipInfo) -> bytes | None:
    """Read a plain, intact member by `pread`; return None if zipfile has to read it.

    That releases Python's lock and needs no file position, so that threads share the archive.
    """
    if member.compress_type not in _DIRECT_METHODS or member.flag_bits & ENCRYPTED:
        return None
    try:
        header = os.pread(file, LOCAL_HEADER, member.header_offset)
        if header[:4] != b"PK\3\4":
            return None
        name, extra = struct.unpack("<HH", header[26:30])
        begin = member.header_offset + LOCAL_HEADER + name + extra
        content = os.pread(file, member.compress_size, begin)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            # One byte more than its size: a limit of 0 would mean no limit.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
    except (OSError, struct.error, zlib.error):
        return None
    intact = len(content) == member.file_size and zlib.crc32(content) == member.CRC
    return content if intact else None
