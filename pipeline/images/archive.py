"""Images: in their archive, a zip that is read in place and never unpacked, and as files."""

import io
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.images.names import EXTENSIONS, check_id, is_image_name, some, to_image_id
from pipeline.images.rgb import scale_transparent_level, to_rgb
from pipeline.images.zip_files import is_junk, open_zip, path_of, read_member
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

# What Pillow decodes by itself: it would hand EPS to Ghostscript, which runs programs. What phones
# call MPO begins as JPEG and is opened as such.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

JPEG_END = b"\xff\xd9"

# Larger than any camera's image: past this it is a mistake or a decompression bomb.
MAX_PIXELS = 200_000_000
MAX_ASPECT = 50  # resized by its shorter side, a line of pixels would become gigabytes
MAX_BYTES = 128 << 20  # of one image's file
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, and warns without an image's name


class ImageArchive:
    """Images of a zip by id (`pipeline.images.names`).

    Threads may share it.

    Raises:
        InputError: the file is no whole zip, holds no image, or one id twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = open_zip(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.others: set[str] = set()  # names of the files that are no images that are read
        for member in self._zip.infolist():
            place = path_of(member)
            image_id = to_image_id(place)
            if is_junk(place):
                continue
            if not is_image_name(image_id):
                self.others.add(image_id)
                continue
            check_id(image_id, where=str(path))
            if image_id in self._members:
                raise InputError(
                    f"{path} holds two images named {image_id!r} "
                    f"({path_of(self._members[image_id])} and {place}); keep one, or rename one"
                )
            self._members[image_id] = member
        if not self._members:
            has = f"it has {some(sorted(self.others))}" if self.others else "it is empty"
            kinds = " ".join(sorted(EXTENSIONS))
            raise InputError(f"{path} holds no images; expected {kinds}, {has}")

    def __enter__(self) -> "ImageArchive":
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
        """All image ids, sorted."""
        return sorted(self._members)

    @property
    def contents(self) -> list[str]:
        """By image, in the order of `ids`, what another name or content changes: the zip's
        directory has it, so nothing is read."""
        members = [(one, self._members[one]) for one in self.ids]
        return [f"{one} {member.CRC:08x} {member.file_size}" for one, member in members]

    def content(self, image_id: str) -> bytes:
        """One image's bytes as they are in the archive, its checksum verified.

        Raises:
            InputError: it is absent or damaged.
        """
        if image_id not in self._members:
            raise InputError(f"{self.path} holds no image {image_id!r}")
        return read_member(self._zip, self._members[image_id], MAX_BYTES)


def read_image(path: Path) -> bytes:
    """An image file's bytes.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(
                    f"the image {path} has {size} bytes, more than {MAX_BYTES}; make it smaller"
                )
            return file.read(MAX_BYTES)  # a device has no size, and no end
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror})") from None


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image: upright by its EXIF tag, in RGB, transparency on white.

    Raises:
        InputError: it is empty, no image, truncated, or absurdly large or thin.
    """
    if not content:
        raise InputError(f"the image {name} is empty; replace or remove it")
    try:
        said: list[str] = []
        with _heard(said):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.format == "TIFF":  # which else reads it amid its pixels
                image.getexif()
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"the image {name} is {width} x {height}, more than "
                f"{MAX_PIXELS // 1_000_000} megapixels; make it smaller or remove it"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InputError(
                f"the image {name} is {width} x {height}, one side more than {MAX_ASPECT} times "
                "the other; crop it or remove it"
            )
        image.load()
        with _heard(said):
            image.getexif()
        for one in dict.fromkeys(said):
            log.warning("the image %s has a fault and is read all the same: %s", name, one)
        scale_transparent_level(image, content)
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, name)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is no image, or of a kind that is not read ({' '.join(FORMATS)} are); "
            "convert or remove it"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        if ended := _with_end(content):
            log.warning("the image %s has no end marker and is read all the same", name)
            return decode_image(ended, name)
        raise InputError(
            f"the image {name} cannot be decoded ({error}); replace or remove it"
        ) from None


_one_at_a_time = threading.Lock()


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Collect Pillow's warnings, which do not say which image they are of.

    What Python has for that is one for all threads, so only what reads the header is done in here.
    """
    with _one_at_a_time, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [" ".join(str(one.message).split()) for one in caught if "PIL" in one.filename]


def _with_end(content: bytes) -> bytes | None:
    """A JPEG that lacks its end marker and nothing else, with one; else None.

    What lacks more is decoded from whatever follows: then two ends give two images.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    first, second = (content + more + JPEG_END for more in (b"", b"\x55" * 64))
    try:
        with _heard([]):
            images = [Image.open(io.BytesIO(one), formats=["JPEG"]) for one in (first, second)]
        whole = "progressive" not in images[0].info or _has_all_scans(content)
        return first if whole and images[0].tobytes() == images[1].tobytes() else None
    except Exception:  # as below
        return None


def _has_all_scans(content: bytes) -> bool:
    """Whether a progressive JPEG's scans come down to the last bit of every coefficient."""
    frame = content.rfind(b"\xff\xc2")  # behind a thumbnail, which may have scans of its own
    components, fine = set[int](), set[tuple[int, int]]()
    for scan in re.finditer(rb"\xff\xda..", content[frame:], re.DOTALL):
        header = content[frame + scan.end() :]
        named = header[1 : 1 + 2 * header[0] : 2]
        first, last, bits = header[1 + 2 * header[0] : 4 + 2 * header[0]]
        components |= set(named)
        if bits & 15 == 0:
            fine |= {(one, place) for one in named for place in range(first, last + 1)}
    return len(fine) == 64 * len(components)
