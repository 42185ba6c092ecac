"""The images of a zip that is read in place and never unpacked."""

import logging
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
from pipeline.images.zip_files import decoded_path, is_junk, open_zip, read_member
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

FIELDS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")


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
            name = decoded_path(member)
            if is_junk(name):
                continue
            member_path = normalize_path(name)
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
        # Images of a format that is not read, and its suffix.
        self.unsupported = {
            path.removeprefix(folder): PurePosixPath(path).suffix for path in sorted(unsupported)
        }
        paths = {name.removeprefix(folder): name for name in members}
        for image_id in paths:
            check_id(image_id, where=str(path))
        self.ids = sorted(paths.keys() - set(excluded))  # all image ids, sorted
        # Half a kilobyte an image becomes 150 bytes: an archive may have millions, in many workers.
        kept = [members[paths[image_id]] for image_id in self.ids]
        self._fields = np.array([[getattr(member, f) for f in FIELDS] for member in kept], np.int64)
        self._names = [member.orig_filename for member in kept]
        self._zip.filelist.clear()
        self._zip.NameToInfo.clear()

    def __enter__(self) -> "ImageArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def fingerprints(self) -> list[str]:
        """Each image's id, CRC-32 and size, in the order of `ids`.

        They come from the zip's directory: no image is read.
        """
        crc, size = FIELDS.index("CRC"), FIELDS.index("file_size")
        values = zip(self.ids, self._fields[:, [crc, size]].tolist(), strict=True)
        return [f"{image_id} {crc:08x} {size}" for image_id, (crc, size) in values]

    def read(self, image_id: str) -> bytes:
        """Return the bytes of one image file; verify its checksum.

        Raises:
            InputError: the image is missing or damaged.
        """
        row = bisect_left(self.ids, image_id)
        if self.ids[row : row + 1] != [image_id]:
            raise InputError(f"{self.path} has no image {image_id!r}")
        member = zipfile.ZipInfo(self._names[row])
        for field, value in zip(FIELDS, self._fields[row].tolist(), strict=True):
            setattr(member, field, value)
        return read_member(self._zip, member, MAX_BYTES)
