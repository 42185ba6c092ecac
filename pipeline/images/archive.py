"""Read and decode images, from files or from a zip that is read in place and never unpacked."""

import io
import logging
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.images.names import (
    EXTENSIONS,
    check_id,
    common_folder,
    first_few,
    is_image_name,
    is_unsupported_name,
    normalize_path,
)
from pipeline.images.rgb import scale_transparent_level, to_rgb
from pipeline.images.zip_files import decoded_path, is_junk, open_zip, read_member
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

# Formats that Pillow decodes by itself: for EPS it runs Ghostscript, which runs programs. The MPO
# files of phones begin as JPEG and are opened as such.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

JPEG_END = b"\xff\xd9"

# Larger than any camera's image: beyond this it is a mistake or a decompression bomb.
MAX_PIXELS = 200_000_000
MAX_ASPECT = 50  # resized by its shorter side, a row of pixels would become gigabytes
MAX_BYTES = 128 << 20  # per image file
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, and warns without the image's name


class ImageArchive:
    """The images of a zip, by id (`pipeline.images.names`). Threads may share it.

    Args:
        excluded: ids of images to leave out.

    Raises:
        InputError: the file is not a complete zip, has no images, or has an id twice.
    """

    def __init__(self, path: Path, excluded: Collection[str] = ()) -> None:
        self.path = path
        self._zip = open_zip(path)
        members: dict[str, zipfile.ZipInfo] = {}
        self.other_files: set[str] = set()  # names of the files that are not images
        unsupported: list[str] = []
        for member in self._zip.infolist():
            member_path = normalize_path(decoded_path(member))
            if is_junk(decoded_path(member)):
                continue
            if not is_image_name(member_path):
                self.other_files.add(PurePosixPath(member_path).name)
                if is_unsupported_name(member_path):
                    unsupported.append(member_path)
            elif member_path in members:
                raise InputError(f"{path} has two images {member_path!r}; remove or rename one")
            else:
                members[member_path] = member
        if not members:
            found = first_few(sorted(self.other_files)) or "an empty archive"
            raise InputError(
                f"{path} has no images; expected {' '.join(sorted(EXTENSIONS))}, found {found}"
            )
        folder = common_folder(members)
        self._members = {name.removeprefix(folder): member for name, member in members.items()}
        # Images of a format that is not read, and its suffix.
        self.unsupported = {
            path.removeprefix(folder): PurePosixPath(path).suffix for path in sorted(unsupported)
        }
        for image_id in self._members:
            check_id(image_id, where=str(path))
        for image_id in excluded:
            self._members.pop(image_id, None)

    def __enter__(self) -> "ImageArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def ids(self) -> list[str]:
        """All image ids, sorted."""
        return sorted(self._members)

    @property
    def fingerprints(self) -> list[str]:
        """Each image's id, CRC-32 and size, in the order of `ids`.

        They come from the zip's directory: no image is read.
        """
        members = [(image_id, self._members[image_id]) for image_id in self.ids]
        return [f"{image_id} {member.CRC:08x} {member.file_size}" for image_id, member in members]

    def read(self, image_id: str) -> bytes:
        """Return the bytes of one image file; verify its checksum.

        Raises:
            InputError: the image is missing or damaged.
        """
        if image_id not in self._members:
            raise InputError(f"{self.path} has no image {image_id!r}")
        return read_member(self._zip, self._members[image_id], MAX_BYTES)


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        InputError: the file cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(
                    f"the image {path} has {size} bytes, more than {MAX_BYTES}; make it smaller"
                )
            return file.read(MAX_BYTES)  # a device has no size and no end
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror})") from None


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image to RGB: rotated upright by its EXIF tag, transparency on white.

    Raises:
        InputError: the file is empty, not an image, truncated, or absurdly large or thin.
    """
    if not content:
        raise InputError(f"the image {name} is empty; replace or remove it")
    try:
        faults: list[str] = []
        with _collect_warnings(faults):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.format == "TIFF":  # later, Pillow would read it while it decodes pixels
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
        with _collect_warnings(faults):
            image.getexif()
        for fault in dict.fromkeys(faults):
            log.warning("the image %s has a fault but can be read: %s", name, fault)
        scale_transparent_level(image, content)
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, name)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not an image of a supported format ({' '.join(FORMATS)}); "
            "convert or remove it"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        if repaired := _add_end_marker(content):
            log.warning("the image %s has no end marker but can be read", name)
            return decode_image(repaired, name)
        raise InputError(
            f"the image {name} cannot be decoded ({error}); replace or remove it"
        ) from None


_warnings_lock = threading.Lock()


@contextmanager
def _collect_warnings(messages: list[str]) -> Iterator[None]:
    """Add Pillow's warnings to `messages`: they do not name the image.

    All threads share Python's warning filters, so only code that reads a header runs in here.
    """
    with _warnings_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages += [
        " ".join(str(warning.message).split()) for warning in caught if "PIL" in warning.filename
    ]


def _add_end_marker(content: bytes) -> bytes | None:
    """Append the end marker to a JPEG that lacks nothing else; return None for any other file.

    If more is missing, the decoder takes what follows for pixels: two endings give two images.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    plain, padded = (content + padding + JPEG_END for padding in (b"", b"\x55" * 64))
    try:
        with _collect_warnings([]):
            first, second = (
                Image.open(io.BytesIO(file), formats=["JPEG"]) for file in (plain, padded)
            )
        complete = "progressive" not in first.info or _has_all_scans(content)
        return plain if complete and first.tobytes() == second.tobytes() else None
    except Exception:  # Pillow's decoders raise almost anything
        return None


def _has_all_scans(content: bytes) -> bool:
    """Whether a progressive JPEG's scans refine every coefficient to its last bit."""
    frame = content.rfind(b"\xff\xc2")  # after a thumbnail, which may have scans of its own
    components, refined = set[int](), set[tuple[int, int]]()
    for scan in re.finditer(rb"\xff\xda..", content[frame:], re.DOTALL):
        header = content[frame + scan.end() :]
        scanned = header[1 : 1 + 2 * header[0] : 2]
        first, last, bits = header[1 + 2 * header[0] : 4 + 2 * header[0]]
        components |= set(scanned)
        if bits & 15 == 0:
            refined |= {
                (component, index) for component in scanned for index in range(first, last + 1)
            }
    return len(refined) == 64 * len(components)
