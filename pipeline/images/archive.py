"""The images of a zip that is read in place and never unpacked."""

import logging
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

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
