"""The feature cache: one HDF5 file that describes itself.

Before HDF5's own part stands a seal (HDF5's user block): where rows and checksums lie, and a digest
of all the rest. `ids` are the image ids, sorted; row i of `features` belongs to `ids[i]`, and
`checksums[i]` is its CRC-32: a row that has rotted on the disk is noticed when it is read. The
layout (default library version, no timestamps, preallocated contiguous datasets) gives the same
bytes for the same values, in whatever order they were written, and can be memory-mapped: any number
of readers, shuffled reads, no handle to share, no lock.
"""

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.errors import ArtifactError, counted

MAGIC = b"showtell features 4\n"
USER_BLOCK = 512  # bytes before HDF5's part, which HDF5 passes over
CHECKSUM = "<u4"


@dataclass(frozen=True)
class FeatureCache:
    """A cache opened for reading."""

    path: Path
    ids: list[str]
    recipe: FeatureRecipe
    array: NDArray[Any]  # (N, D) pooled or (N, H, W, D) grid, mapped, not loaded
    checksums: NDArray[np.uint32]  # (N,), of the rows

    def row_indices(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of these images in `array`, in this order.

        Raises:
            InputError: an image is not in the cache.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        missing = [image_id for image_id in ids if image_id not in row_of]
        if missing:
            lacks = f"lacks {counted(len(missing), 'image')}, {missing[0]!r} among them"
            raise ArtifactError(self.path, lacks)
        return np.array([row_of[image_id] for image_id in ids], dtype=np.int64)

    def checked(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The features (n, …) of these rows, read.

        Raises:
            InputError: they are not what was written.
        """
        read = np.ascontiguousarray(self.array[rows])
        wrong = (checksums_of(read) != self.checksums[rows]).nonzero()[0]
        if len(wrong):
            image_id = self.ids[int(rows[wrong[0]])]
            damage = f"is damaged: the features of {image_id!r} are not what was written"
            raise ArtifactError(self.path, damage)
        return read


@dataclass(frozen=True)
class Layout:
    """Where in the file a cache's rows and their checksums belong, in bytes."""

    count: int
    rows: int
    row_size: int
    checksums: int

    def between(self, begin: int, end: int) -> list[tuple[int, int]]:
        """What of that part of the file is neither rows nor checksums."""
        kept = sorted(
            [
                (self.rows, self.rows + self.count * self.row_size),
                (self.checksums, self.checksums + self.count * np.dtype(CHECKSUM).itemsize),
            ]
        )
        return [
            part
            for part in pairwise([begin, *chain.from_iterable(kept), end])
            if part not in kept and part[0] < part[1]
        ]

    def digest(self, file: BinaryIO) -> str:
        """SHA-256 of all that HDF5 wrote around them."""
        digest = hashlib.sha256()
        for begin, end in self.between(USER_BLOCK, os.fstat(file.fileno()).st_size):
            file.seek(begin)
            while block := file.read(min(1 << 20, end - file.tell())):
                digest.update(block)
        return digest.hexdigest()


def allocate(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Layout:
    """Write a cache whose rows, of shape `shape`, and their checksums are yet to come.

    Args:
        ids: sorted, distinct; one a row.
        dtype: `float16` or `float32`.

    Raises:
        OSError: there is no room, or no right.
    """
    try:
        layout = _lay_out(path, ids, shape, dtype, recipe)
    except RuntimeError as error:  # HDF5 says which error it had among other words
        if not (number := re.search(r"errno = (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    with path.open("r+b") as written:
        seal = json.dumps({**asdict(layout), "sha256": layout.digest(written)})
        written.seek(0)
        written.write(MAGIC + seal.encode().ljust(USER_BLOCK - len(MAGIC), b"\0"))
    return layout


def _lay_out(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Layout:
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["recipe"] = json.dumps(recipe.to_json(), ensure_ascii=False)
        names = np.array([image_id.encode() for image_id in ids])
        file.create_dataset("ids", data=names, track_times=False)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

        def space(name: str, of: tuple[int, ...], kind: str) -> int:
            dataset = file.create_dataset(name, of, kind, dcpl=settings, track_times=False)
            return int(dataset.id.get_offset())

        checksums = space("checksums", (len(ids),), CHECKSUM)
        rows = space("features", (len(ids), *shape), dtype)
    return Layout(len(ids), rows, row_size(shape, dtype), checksums)


def sealed_layout(file: BinaryIO) -> Layout | None:
    """What `allocate` wrote before HDF5's part, if that is as it was: the HDF5 library does not
    survive all that can happen to it."""
    try:
        seal = json.loads(file.read(USER_BLOCK).removeprefix(MAGIC).rstrip(b"\0"))
        digest = seal.pop("sha256")
        layout = Layout(**seal)
        return layout if layout.digest(file) == digest else None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        return None


def row_size(shape: Sequence[int], dtype: str) -> int:
    """Of one image's features, in bytes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def checksums_of(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of the bytes of each row (n, …)."""
    return np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in rows], dtype=CHECKSUM)


def read_features(path: Path) -> FeatureCache:
    """Open a cache, checked for structure; values are checked as they are read.

    Raises:
        InputError: the file is absent, truncated, or no feature cache.
    """
    if not path.is_file():
        raise ArtifactError(path, "does not exist")
    with path.open("rb") as content:  # one handle: another run may put a new file in its place
        layout = sealed_layout(content)
        if layout is None:
            raise ArtifactError(path, "is damaged or not a feature cache of this version")
        try:
            # By way of Python's file HDF5 takes no lock of its own: nobody writes to a file that
            # came into place whole, and some file systems know no locks.
            with h5py.File(content, "r") as file:
                recipe = FeatureRecipe.from_json(json.loads(file.attrs["recipe"]), where=str(path))
                ids = [name.decode() for name in file["ids"][:]]
                checksums = file["checksums"][:]
                dataset = file["features"]
                shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(path, f"is damaged or not a feature cache ({error})") from None
        size = math.prod(shape) * dtype.itemsize
        ordered = len(ids) == len(checksums) == shape[0] and ids == sorted(set(ids))
        whole = offset is not None and os.fstat(content.fileno()).st_size >= offset + size
        if not (ordered and whole and dtype.kind == "f" and offset == layout.rows):
            raise ArtifactError(path, "is damaged: its rows and ids do not match")
        array = np.memmap(content, dtype=dtype, mode="r", offset=offset, shape=shape)
    return FeatureCache(path, ids, recipe, array, checksums)
