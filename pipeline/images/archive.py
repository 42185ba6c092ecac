"""The images of a zip that is read in place and never unpacked."""

import zipfile
from bisect import bisect_left
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.images.decode import MAX_BYTES
from pipeline.images.names import (
    EXTENSIONS,
    check_id,
    common_folder,
    first_few,
    is_image_name,
    is_unsupported_name,
    normalize_path,
)
from pipeline.images.zip_directory import FIELDS, read_directory
from pipeline.images.zip_files import decode_name, is_junk, open_zip, read_directly, read_member
from pipeline.runtime.errors import InputError


class ImageArchive:
    """The images of a zip, by id (`pipeline.images.names`). Threads may share it.

    Args:
        excluded: ids of images to leave out.

    Raises:
        InputError: the file is not a complete zip, has no images, or has an id twice.
    """

    def __init__(self, path: Path, excluded: Collection[str] = ()) -> None:
        self.path = path
        self._directory = read_directory(path)
        rows: dict[str, int] = {}  # in the directory
        self.other_files: set[str] = set()  # names of the files that are not images
        unsupported: list[str] = []
        flags = self._directory.fields[:, FIELDS.index("flag_bits")].tolist()
        for row, (raw, flag_bits) in enumerate(zip(self._directory.names, flags, strict=True)):
            name = decode_name(raw.partition("\0")[0], flag_bits)  # where zipfile ends it
            if is_junk(name):
                continue
            member_path = normalize_path(name)
            if not is_image_name(member_path):
                self.other_files.add(PurePosixPath(member_path).name)
                if is_unsupported_name(member_path):
                    unsupported.append(member_path)
            elif member_path in rows:
                raise InputError(f"{path} has two images {member_path!r}; remove or rename one")
            else:
                rows[member_path] = row
        if not rows:
            found = first_few(sorted(self.other_files)) or "an empty archive"
            raise InputError(
                f"{path} has no images; expected {' '.join(sorted(EXTENSIONS))}, found {found}"
            )
        folder = common_folder(rows)
        # Images of a format that is not read, and its suffix.
        self.unsupported = {
            path.removeprefix(folder): PurePosixPath(path).suffix for path in sorted(unsupported)
        }
        row_of = {name.removeprefix(folder): row for name, row in rows.items()}
        for image_id in row_of:
            check_id(image_id, where=str(path))
        left_out = set(excluded)
        # All image ids, sorted. Zips mostly are already, and that is quick to see.
        self.ids = sorted(image_id for image_id in row_of if image_id not in left_out)
        self._rows = np.array([row_of[image_id] for image_id in self.ids])
        self._file = path.open("rb")
        self._zip: zipfile.ZipFile | None = None

    def __enter__(self) -> "ImageArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._zip:
            self._zip.close()

    @property
    def fingerprints(self) -> list[str]:
        """Each image's id, CRC-32 and size, in the order of `ids`.

        They come from the zip's directory: no image is read.
        """
        columns = [FIELDS.index("CRC"), FIELDS.index("file_size")]
        values = self._directory.fields[self._rows][:, columns].tolist()
        images = zip(self.ids, values, strict=True)
        return [f"{image_id} {crc:08x} {size}" for image_id, (crc, size) in images]

    def read(self, image_id: str) -> bytes:
        """Return the bytes of one image file; verify its checksum.

        Raises:
            InputError: the image is missing or damaged.
        """
        number = bisect_left(self.ids, image_id)
        if self.ids[number : number + 1] != [image_id]:
            raise InputError(f"{self.path} has no image {image_id!r}")
        member = self._directory.member(self._rows[number])
        content = None
        if member.file_size <= MAX_BYTES:
            content = read_directly(self._file.fileno(), member)
        if content is None:  # unusual, too large or damaged
            self._zip = self._zip or open_zip(self.path)
            content = read_member(self._zip, member, MAX_BYTES)
        return content
