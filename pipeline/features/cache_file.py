"""One HDF5 file with rows of a feature cache: all of them, or those of a shard.

HDF5's user block, before HDF5's own part, holds the offsets of rows and checksums and a digest of
everything else. The layout (default library version, no timestamps, preallocated contiguous
datasets) gives the same bytes for the same values in any order of writes. It can be memory-mapped,
so any number of readers need no locks.
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
from pipeline.runtime.errors import ArtifactError

MAGIC = b"showtell features 4\n"
USER_BLOCK = 512  # bytes
CHECKSUM_DTYPE = "<u4"


@dataclass(frozen=True)
class CacheSpec:
    """What is known of a cache before its rows are written."""

    ids: Sequence[str]  # sorted and distinct
    shape: Sequence[int]  # of a row
    dtype: str  # float16 or float32
    recipe: FeatureRecipe
    augmentations: int = 0
    shard_rows: int | None = None  # of each file; None: one file has all
    part: range | None = None  # the rows to write, in one file; None: all

    @property
    def rows(self) -> range:
        """The rows to write."""
        return self.part or range(self.num_rows)

    @property
    def is_sharded(self) -> bool:
        """Whether there are several files."""
        return self.shard_rows is not None and self.part is None

    @property
    def shards(self) -> list[range]:
        """The rows of each file."""
        size = self.shard_rows or self.num_rows
        return [range(b, min(b + size, self.num_rows)) for b in range(0, self.num_rows, size)]

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
    """The offsets of a file's rows and checksums, in bytes."""

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


def allocate(path: Path, spec: CacheSpec, rows: range | None = None) -> Layout:
    """Write a file without the values of its rows and checksums.

    Args:
        rows: those of a shard; None: all.

    Raises:
        OSError: the disk is full.
    """
    try:
        layout = _allocate_hdf5(path, spec, rows)
    except RuntimeError as error:  # HDF5 puts the errno into its message
        if not (number := re.search(r"errno = (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    seal(path, layout)
    return layout


def seal(path: Path, layout: Layout) -> None:
    """Write the user block of an HDF5 file: its layout, and the digest of all but its rows."""
    with path.open("r+b") as file:
        header = json.dumps({**asdict(layout), "sha256": layout.digest(file)})
        file.seek(0)
        file.write(MAGIC + header.encode().ljust(USER_BLOCK - len(MAGIC), b"\0"))


def _allocate_hdf5(path: Path, spec: CacheSpec, rows: range | None) -> Layout:
    count = spec.num_rows if rows is None else len(rows)
    ids = spec.ids if rows is None else [spec.ids[row % len(spec.ids)] for row in rows]
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["recipe"] = json.dumps(asdict(spec.recipe), ensure_ascii=False)
        if rows is not None:
            of = (spec.num_rows, len(spec.ids)) if spec.part else (None, None)
            file.attrs["shard"] = json.dumps(asdict(ShardInfo(rows.start, rows.stop, *of)))
        names = np.array([image_id.encode() for image_id in ids])
        file.create_dataset("ids", data=names, track_times=False)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

        def reserve(name: str, shape: tuple[int, ...], dtype: str) -> int:
            dataset = file.create_dataset(name, shape, dtype, dcpl=settings, track_times=False)
            return int(dataset.id.get_offset())

        checksums = reserve("checksums", (count,), CHECKSUM_DTYPE)
        offset = reserve("features", (count, *spec.shape), spec.dtype)
    return Layout(count, offset, spec.row_size, checksums)


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


@dataclass(frozen=True)
class ShardInfo:
    """Which rows of a cache a shard has.

    The shards of one index do not say how many there are, so that more images need not change them.
    """

    begin: int
    end: int
    num_rows: int | None = None  # of the cache, in a part that has no index
    num_images: int | None = None


@dataclass(frozen=True)
class CacheFile:
    """A file opened for reading."""

    path: Path
    ids: list[str]  # of a cache, its N; of a shard, each row's
    recipe: FeatureRecipe
    array: NDArray[Any]  # (n, D) pooled or (n, H, W, D) grid, memory-mapped
    checksums: NDArray[np.uint32]  # (n,)
    shard: ShardInfo | None


def read_cache_file(path: Path) -> CacheFile:
    """Open a file and check its structure; rows are to be verified when they are read.

    Raises:
        ArtifactError: the file is missing, damaged, or not of a feature cache.
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
                shard = file.attrs.get("shard")
                info = ShardInfo(**json.loads(shard)) if shard else None
                ids = [name.decode() for name in file["ids"][:]]
                checksums = file["checksums"][:]
                dataset = file["features"]
                shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(path, f"is damaged or not a feature cache ({error})") from None
        size = math.prod(shape) * dtype.itemsize
        if info:
            whole = len(ids) == shape[0] == info.end - info.begin
        else:
            whole = len(ids) > 0 and shape[0] % len(ids) == 0 and ids == sorted(set(ids))
        complete = offset is not None and os.fstat(content.fileno()).st_size >= offset + size
        fits = whole and len(checksums) == shape[0]
        if not (fits and complete and dtype.kind == "f" and offset == layout.rows):
            raise ArtifactError(path, "is damaged: its rows and ids do not match")
        array = np.memmap(content, dtype=dtype, mode="r", offset=offset, shape=shape)
    return CacheFile(path, ids, recipe, array, checksums, info)
