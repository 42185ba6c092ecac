"""The feature cache: one HDF5 file that describes itself.

HDF5's user block, before HDF5's own part, holds the offsets of rows and checksums and a digest of
everything else. `ids` are the sorted image ids, N of them; row i of `features` belongs to `ids[i]`,
and row i + k * N, if there is one, is its augmentation of number k. `checksums[i]` is row i's
CRC-32, verified on every read. The layout (default library version, no timestamps, preallocated
contiguous datasets) gives the same bytes for the same values in any order of writes. It can be
memory-mapped, so any number of readers need no locks.
"""

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.errors import ArtifactError, pluralize

MAGIC = b"showtell features 4\n"
USER_BLOCK = 512  # bytes
CHECKSUM_DTYPE = "<u4"


@dataclass(frozen=True)
class FeatureCache:
    """A cache opened for reading."""

    path: Path
    ids: list[str]  # N
    recipe: FeatureRecipe
    # (R, D) pooled or (R, H, W, D) grid, memory-mapped; R = (1 + augmentations) * N
    array: NDArray[Any]
    checksums: NDArray[np.uint32]  # (R,)

    @property
    def augmentations(self) -> int:
        """Further views of each image; that of number k of row i is row i + k * N."""
        return len(self.array) // len(self.ids) - 1

    def row_indices(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row indices of these images; an ArtifactError if the cache lacks one."""
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        missing = [image_id for image_id in ids if image_id not in row_of]
        if missing:
            number = pluralize(len(missing), "image")
            raise ArtifactError(self.path, f"lacks {number}, {missing[0]!r} among them")
        return np.array([row_of[image_id] for image_id in ids], dtype=np.int64)

    def read_verified(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read the features (n, …) of these rows; an ArtifactError if one is damaged."""
        features = np.ascontiguousarray(self.array[rows])
        damaged = (row_checksums(features) != self.checksums[rows]).nonzero()[0]
        if len(damaged):
            image_id = self.ids[int(rows[damaged[0]]) % len(self.ids)]
            reason = f"is damaged: the features of {image_id!r} are not what was written"
            raise ArtifactError(self.path, reason)
        return features


@dataclass(frozen=True)
class CacheSpec:
    """What is known of a cache before its rows are written."""

    ids: Sequence[str]  # sorted and distinct
    shape: Sequence[int]  # of a row
    dtype: str  # float16 or float32
    recipe: FeatureRecipe
    augmentations: int = 0

    @property
    def num_rows(self) -> int:
        """All images, then all images' first augmentations, and so on."""
        return (1 + self.augmentations) * len(self.ids)

    @property
    def row_size(self) -> int:
        """The size of a row in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The offsets of a cache's rows and checksums in its file, in bytes."""

    count: int
    rows: int
    row_size: int
    checksums: int

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges between `begin` and `end` that are neither rows nor checksums."""
        rows_end = self.rows + self.count * self.row_size
        checksums_end = self.checksums + self.count * np.dtype(CHECKSUM_DTYPE).itemsize
        first, second = sorted([(self.rows, rows_end), (self.checksums, checksums_end)])
        gaps = ((begin, first[0]), (first[1], second[0]), (second[1], end))
        return [gap for gap in gaps if gap[0] < gap[1]]

    def digest(self, file: BinaryIO) -> str:
        """Return the SHA-256 of the gaps, which HDF5 wrote."""
        digest = hashlib.sha256()
        for begin, end in self.gaps(USER_BLOCK, os.fstat(file.fileno()).st_size):
            file.seek(begin)
            while block := file.read(min(1 << 20, end - file.tell())):
                digest.update(block)
        return digest.hexdigest()


def allocate(path: Path, spec: CacheSpec) -> Layout:
    """Write a cache without the values of its rows and checksums; a full disk is an OSError."""
    try:
        layout = _allocate_hdf5(path, spec)
    except RuntimeError as error:  # HDF5 puts the errno into its message
        if not (number := re.search(r"errno = (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    with path.open("r+b") as file:
        header = json.dumps({**asdict(layout), "sha256": layout.digest(file)})
        file.seek(0)
        file.write(MAGIC + header.encode().ljust(USER_BLOCK - len(MAGIC), b"\0"))
    return layout


def _allocate_hdf5(path: Path, spec: CacheSpec) -> Layout:
    count = spec.num_rows
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["recipe"] = json.dumps(asdict(spec.recipe), ensure_ascii=False)
        names = np.array([image_id.encode() for image_id in spec.ids])
        file.create_dataset("ids", data=names, track_times=False)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

        def reserve(name: str, shape: tuple[int, ...], dtype: str) -> int:
            dataset = file.create_dataset(name, shape, dtype, dcpl=settings, track_times=False)
            return int(dataset.id.get_offset())

        checksums = reserve("checksums", (count,), CHECKSUM_DTYPE)
        rows = reserve("features", (count, *spec.shape), spec.dtype)
    return Layout(count, rows, spec.row_size, checksums)


def read_layout(file: BinaryIO) -> Layout | None:
    """Read the user block; return None if it or HDF5's part is damaged.

    Such damage can crash the HDF5 library.
    """
    try:
        header = json.loads(file.read(USER_BLOCK).removeprefix(MAGIC).rstrip(b"\0"))
        digest = header.pop("sha256")
        layout = Layout(**header)
        return layout if layout.digest(file) == digest else None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        return None


def row_checksums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row (n, …)."""
    checksums = [zlib.crc32(np.ascontiguousarray(row).data) for row in rows]
    return np.array(checksums, dtype=CHECKSUM_DTYPE)


def read_features(path: Path) -> FeatureCache:
    """Open a cache and check its structure; rows are verified when they are read.

    Raises:
        ArtifactError: the file is missing, damaged, or not a feature cache.
    """
    if not path.is_file():
        raise ArtifactError(path, "does not exist")
    with path.open("rb") as content:  # one handle: another run may replace the file
        layout = read_layout(content)
        if layout is None:
            raise ArtifactError(path, "is damaged or not a feature cache of this version")
        try:
            # With Python's file, HDF5 takes no lock: files are never changed in place, and some
            # file systems have no locks.
            with h5py.File(content, "r") as file:
                recipe = FeatureRecipe.from_json(json.loads(file.attrs["recipe"]), where=str(path))
                ids = [name.decode() for name in file["ids"][:]]
                checksums = file["checksums"][:]
                dataset = file["features"]
                shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(path, f"is damaged or not a feature cache ({error})") from None
        size = math.prod(shape) * dtype.itemsize
        whole = len(ids) > 0 and shape[0] % len(ids) == 0 and len(checksums) == shape[0]
        ordered = whole and ids == sorted(set(ids))
        complete = offset is not None and os.fstat(content.fileno()).st_size >= offset + size
        if not (ordered and complete and dtype.kind == "f" and offset == layout.rows):
            raise ArtifactError(path, "is damaged: its rows and ids do not match")
        array = np.memmap(content, dtype=dtype, mode="r", offset=offset, shape=shape)
    return FeatureCache(path, ids, recipe, array, checksums)
