"""A zip's directory as names and numbers.

zipfile makes an object for each member: 19 s and 0.7 GB for a million of them, in every worker.
"""

import os
import struct
import zipfile
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.images.zip_files import UTF8_NAME, open_zip

# Of a `ZipInfo`, in the order of the numbers.
FIELDS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")
END, END_64, LOCATOR_64, ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
END_SIZE, END_64_SIZE, LOCATOR_64_SIZE, ENTRY_SIZE = 22, 56, 20, 46
LARGE = 0xFFFFFFFF  # the number is in the entry's ZIP64 field
ZIP64_FIELD, UNICODE_FIELD = 1, 0x7075
MAX_VERSION = 63  # of the format, that zipfile reads


@dataclass(frozen=True)
class ZipDirectory:
    """All members, in the order of the directory."""

    names: list[str]  # N
    fields: NDArray[np.int64]  # (N, 6), by FIELDS

    def member(self, row: int) -> zipfile.ZipInfo:
        """The member as zipfile knows it."""
        member = zipfile.ZipInfo(self.names[row])
        for field, value in zip(FIELDS, self.fields[row].tolist(), strict=True):
            setattr(member, field, value)
        return member


def read_directory(path: Path) -> ZipDirectory:
    """Read the directory of a zip.

    Raises:
        InputError: the file is missing, or not a complete zip.
    """
    if directory := _read_plain(path):
        return directory
    with open_zip(path) as archive:
        members = archive.infolist()
    values = [[getattr(member, field) for field in FIELDS] for member in members]
    fields = np.array(values, np.int64).reshape(-1, len(FIELDS))
    return ZipDirectory([member.orig_filename for member in members], fields)


def _read_plain(path: Path) -> ZipDirectory | None:
    """Read a directory as all common tools write it; None for any other, which zipfile reads."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        size = os.fstat(file).st_size
        found = _locate(file, size)
        if found is None:
            return None
        count, begin, length = found
        return _parse(os.pread(file, length, begin), count)
    except (OSError, struct.error, UnicodeError, OverflowError, MemoryError):
        return None
    finally:
        os.close(file)


def _locate(file: int, size: int) -> tuple[int, int, int] | None:
    """The number of members, and the directory's offset and length."""
    end = os.pread(file, END_SIZE, max(0, size - END_SIZE))
    if end[:4] != END:  # a comment follows, or nothing is there
        return None
    disk, first_disk, here, count, length, begin, comment = struct.unpack("<4H2LH", end[4:])
    if disk or first_disk or here != count or comment:
        return None
    stop = size - END_SIZE
    tail_size = END_64_SIZE + LOCATOR_64_SIZE
    tail = os.pread(file, tail_size, max(0, stop - tail_size))
    if tail[END_64_SIZE:][:4] == LOCATOR_64:
        here, count, length, begin = struct.unpack("<4Q", tail[24:END_64_SIZE])
        if tail[:4] != END_64 or here != count:
            return None
        stop -= tail_size
    # Otherwise something stands before the zip or in it, which zipfile allows for.
    return (count, begin, length) if begin + length == stop else None


def _parse(content: bytes, count: int) -> ZipDirectory | None:
    names: list[str] = []
    numbers, at = array("q"), 0
    entry = struct.Struct("<4s2xBx2H4x3L3H8xL")
    for _ in range(count):
        signature, version, flags, method, crc, packed, size, name, extra, comment, offset = (
            entry.unpack_from(content, at)
        )
        stop = at + ENTRY_SIZE + name
        if signature != ENTRY or version > MAX_VERSION or stop > len(content):
            return None
        if extra or LARGE in (packed, size, offset):
            large = _large_numbers(content[stop : stop + extra], size, packed, offset)
            if large is None:
                return None
            size, packed, offset = large
        encoding = "utf-8" if flags & UTF8_NAME else "cp437"
        names.append(content[at + ENTRY_SIZE : stop].decode(encoding))
        numbers.extend((offset, packed, size, crc, method, flags))
        at = stop + extra + comment
    if at != len(content):
        return None
    fields = np.frombuffer(numbers, np.int64).reshape(-1, len(FIELDS))
    return ZipDirectory(names, fields)


def _large_numbers(extra: bytes, *values: int) -> list[int] | None:
    """Size, packed size and offset: those that are too large for the entry from its extra fields.

    None if these are damaged, or name the member as well.
    """
    large: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == UNICODE_FIELD or 4 + length > len(extra):
            return None
        if kind == ZIP64_FIELD:
            large = [
                number for (number,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])
            ]
        extra = extra[4 + length :]
    if len(large) < sum(value == LARGE for value in values):
        return None
    found = iter(large)
    return [next(found) if value == LARGE else value for value in values]
