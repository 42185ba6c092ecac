"""The text files of the archive that `download` writes, read within limits."""

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from zipfile import ZipInfo

from pipeline.images.names import is_image_name
from pipeline.images.zip_files import decoded_path, is_junk, open_zip, read_member
from pipeline.runtime.errors import InputError
from pipeline.sources.containers import MAX_TEXT_BYTES, is_text_name

# In memory a caption takes several times its length, so the number of lines has its own limit.
MAX_LINES = 10_000_000
MAX_LINE = 64 << 10  # bytes
# Text compresses to a tenth. What compresses to less than a hundredth is a mistake or a bomb.
MAX_RATIO = 100
MIN_BOMB_BYTES = 64 << 20
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_content(line: str) -> bool:
    """Whether a line is neither empty nor Excel's `sep=;`, which names the delimiter."""
    return bool(line.strip()) and not re.fullmatch(r"sep=.", line.strip())


class TextArchive:
    """The text files of a zip, by their paths in it.

    Raises:
        InputError: the file is not a complete zip, or has a path twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = open_zip(path)
        self._members: dict[str, ZipInfo] = {}
        self.other_files: list[str] = []  # neither text nor images
        for member in self._zip.infolist():
            name = decoded_path(member)
            if is_junk(name):
                continue
            if not is_text_name(name):
                if not is_image_name(name):
                    self.other_files.append(name)
            elif name in self._members:
                raise InputError(f"{path} has two files {name!r}; keep one")
            else:
                self._members[name] = member

    def __enter__(self) -> "TextArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """All text files, sorted by path."""
        return sorted(self._members)

    def where(self, name: str) -> str:
        """Return what messages call a file."""
        return f"{self.path}: {PurePosixPath(name).name}"

    def content(self, name: str) -> bytes:
        """Return a file's bytes, without a byte order mark.

        Raises:
            InputError: the file is damaged, too large, or UTF-16.
        """
        member = self._members[name]
        limit = max(MIN_BOMB_BYTES, MAX_RATIO * member.compress_size)
        content = read_member(self._zip, member, min(limit, MAX_TEXT_BYTES))
        if content.startswith(_UTF16_MARKS):
            raise InputError(f"{self.where(name)} is UTF-16; save it as UTF-8 (Excel: CSV UTF-8)")
        return content.removeprefix(codecs.BOM_UTF8)

    def head(self, name: str) -> str:
        """Return the first line with content, to recognise the file by."""
        try:
            with self._zip.open(self._members[name]) as file:
                begin = file.read(MAX_LINE)
        except Exception:  # zlib, lzma, bz2 and zipfile raise their own kinds; `content` reports it
            begin = self.content(name)[:MAX_LINE]
        encoding = "utf-16" if begin.startswith(_UTF16_MARKS) else "utf-8-sig"
        lines = begin.decode(encoding, errors="replace").splitlines()
        return next((line for line in lines if is_content(line)), "")

    def lines(self, name: str) -> Iterator[str]:
        """Yield a text file's lines, decoded one at a time: memory stays near the file's size.

        Raises:
            InputError: a line is not UTF-8 or too long, or there are too many.
        """
        content, where = self.content(name), self.where(name)
        if b"\n" not in content:  # classic Mac OS
            content = content.replace(b"\r", b"\n")
        file = io.BytesIO(content)
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if number > MAX_LINES:
                raise InputError(f"{where} has more than {MAX_LINES} lines; use a part of it")
            if len(line) > MAX_LINE:
                raise InputError(f"{where}, line {number}: more than {MAX_LINE} bytes; shorten it")
            try:
                yield line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{where}, line {number} is not UTF-8 at its byte {error.start}; save the file "
                    "as UTF-8 (Excel: CSV UTF-8)"
                ) from None
