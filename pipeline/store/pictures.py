"""Pictures: in their archive, a zip that is read in place and never unpacked, and as files."""

import io
import os
import struct
import zipfile
from pathlib import Path, PurePosixPath
from types import TracebackType

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

# What Pillow decodes by itself: it would hand EPS to Ghostscript, which runs programs. What phones
# call MPO begins as JPEG and is opened as such.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

# Larger than any camera's picture: past this it is a mistake or a decompression bomb.
MAX_PIXELS = 200_000_000
MAX_ASPECT = 50  # resized by its shorter side, a line of pixels would become gigabytes
MAX_BYTES = 128 << 20  # of one picture's file
MAX_NAME = 255  # bytes, as file systems have it: the cache keeps room for the longest for each
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, and warns without a picture's name


class PictureArchive:
    """Pictures of a zip by id, which is the file's name without its folders.

    Each worker opens its own: the handle is not shared.

    Raises:
        InputError: the file is no whole zip, holds no picture, or one id twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = open_zip(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            name = PurePosixPath(member.filename)
            if is_clutter(member) or name.suffix.lower() not in EXTENSIONS:
                continue
            check_id(name.name, where=str(path))
            if name.name in self._members:
                raise InputError(
                    f"{path} holds two pictures named {name.name!r} "
                    f"({self._members[name.name].filename} and {member.filename}); keep one"
                )
            self._members[name.name] = member
        if not self._members:
            raise InputError(f"{path} holds no pictures; expected {' '.join(sorted(EXTENSIONS))}")

    def __enter__(self) -> "PictureArchive":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    @property
    def ids(self) -> list[str]:
        """All picture ids, sorted."""
        return sorted(self._members)

    def content(self, image_id: str) -> bytes:
        """One picture's bytes as they are in the archive, its checksum verified.

        Raises:
            InputError: it is absent or damaged.
        """
        if image_id not in self._members:
            raise InputError(f"{self.path} holds no picture {image_id!r}")
        return read_member(self._zip, self._members[image_id], MAX_BYTES)


def check_id(image_id: str, where: str) -> None:
    """
    Raises:
        InputError: the id would do something where it is shown: move a terminal's cursor, say, or
            be computed by a spreadsheet.
    """
    if len(image_id.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise InputError(
            f"{where}: a picture is called {image_id[:40]!r}… and on; {MAX_NAME} bytes may do"
        )
    if not image_id.isprintable() or image_id.startswith(("=", "+", "-", "@")):
        raise InputError(
            f"{where}: a picture may not be called {image_id!r}; names are printable and do not "
            "begin with = + - @"
        )


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
    try:
        return archive.read(member)
    except MemoryError:
        raise
    except Exception as error:  # zlib, lzma, bz2 and zipfile raise their own kinds
        raise InputError(f"{where} cannot be unpacked ({error}); fetch the archive again") from None


def read_picture(path: Path) -> bytes:
    """A picture file's bytes.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(
                    f"the picture {path} has {size} bytes, more than {MAX_BYTES}; make it smaller"
                )
            return file.read(MAX_BYTES)  # a device has no size, and no end
    except OSError as error:
        raise InputError(f"the picture {path} cannot be read ({error.strerror})") from None


def decode_picture(content: bytes, name: str) -> Image.Image:
    """Decode a picture: upright by its EXIF tag, in RGB, transparency on white.

    Raises:
        InputError: it is empty, no picture, truncated, or absurdly large or thin.
    """
    if not content:
        raise InputError(f"the picture {name} is empty; replace or remove it")
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"the picture {name} is {width} x {height}, more than "
                f"{MAX_PIXELS // 1_000_000} megapixels; make it smaller or remove it"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InputError(
                f"the picture {name} is {width} x {height}, one side more than {MAX_ASPECT} times "
                "the other; crop it or remove it"
            )
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is no picture, or of a kind that is not read ({' '.join(FORMATS)} are); "
            "convert or remove it"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise InputError(
            f"the picture {name} cannot be decoded ({error}); replace or remove it"
        ) from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel and more: Pillow would clip, not scale
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.has_transparency_data:
        # No copy that is not needed: each may be a gigabyte.
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which copies


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip, saying what it is where it is none.

    Raises:
        InputError: the file is absent, a web page, or no whole zip.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the stage 'download' makes it") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        with path.open("rb") as content:
            begin = content.read(512).lstrip().lower()
        if begin.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            what = "a web page, not a zip: the address leads to a page about the file"
        elif not begin:
            what = "empty"
        elif begin.startswith(b"pk"):
            what = "a truncated or damaged zip"
        else:
            what = "no zip"
        raise InputError(f"{path} is {what}; check the address and fetch it again") from None


def is_clutter(member: zipfile.ZipInfo) -> bool:
    """Folders and what macOS adds to a zip."""
    parts = PurePosixPath(member.filename).parts
    return not parts or member.is_dir() or "__MACOSX" in parts or parts[-1].startswith("._")
