"""The feature cache: one HDF5 file that describes itself.

`ids` are the picture ids, sorted; row i of `features` belongs to `ids[i]`, and `checksums[i]` is
its CRC-32: a row that has rotted on the disk is noticed when it is read. The layout (default
library version, no timestamps, preallocated contiguous datasets) gives the same bytes for the same
values, in whatever order they were written, and can be memory-mapped: any number of readers,
shuffled reads, no handle to share, no lock.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.store.recipe import FeatureRecipe

FORMAT = "showtell features 3"
CHECKSUM = "<u4"


@dataclass(frozen=True)
class Features:
    """A cache opened for reading."""

    path: Path
    ids: list[str]
    recipe: FeatureRecipe
    array: NDArray[Any]  # (N, D) pooled or (N, H, W, D) grid, mapped, not loaded
    checksums: NDArray[np.uint32]  # (N,), of the rows

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of these pictures in `array`, in this order.

        Raises:
            InputError: a picture is not in the cache.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        missing = [image_id for image_id in ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{self.path} lacks {len(missing)} pictures, {missing[0]!r} among them; "
                "run the stage 'extract' again"
            )
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
            raise InputError(
                f"{self.path} is damaged: the features of {image_id!r} are not what was written; "
                "run the stage 'extract' again"
            )
        return read


@dataclass(frozen=True)
class Layout:
    """Where in the file a cache's rows and their checksums belong, in bytes."""

    rows: int
    row_size: int
    checksums: int


def lay_out(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Layout:
    """Write a cache whose rows, of shape `shape`, and their checksums are yet to come.

    Args:
        ids: sorted, distinct; one a row.
        dtype: `float16` or `float32`.
    """
    written = json.dumps(recipe.to_json(), ensure_ascii=False)
    names = [image_id.encode() for image_id in ids]
    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["recipe"] = written
        file.attrs["digest"] = _digest(written, names)
        file.create_dataset("ids", data=np.array(names), track_times=False)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

        def space(name: str, of: tuple[int, ...], kind: str) -> int:
            dataset = file.create_dataset(name, of, kind, dcpl=layout, track_times=False)
            return int(dataset.id.get_offset())

        checksums = space("checksums", (len(ids),), CHECKSUM)
        rows = space("features", (len(ids), *shape), dtype)
    return Layout(rows, row_size(shape, dtype), checksums)


def row_size(shape: Sequence[int], dtype: str) -> int:
    """Of one picture's features, in bytes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def checksums_of(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of the bytes of each row (n, …)."""
    return np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in rows], dtype=CHECKSUM)


def _digest(recipe: str, ids: Sequence[bytes]) -> str:
    """Of what describes the rows."""
    return hashlib.sha256(b"\n".join([recipe.encode(), *ids])).hexdigest()[:16]


def read_features(path: Path) -> Features:
    """Open a cache, checked for structure; values are checked as they are read.

    Raises:
        InputError: the file is absent, truncated, or no feature cache.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; the stage 'extract' makes it")
    with path.open("rb") as content:  # one handle: another run may put a new file in its place
        try:
            # By way of Python's file HDF5 takes no lock of its own: nobody writes to a file that
            # came into place whole, and some file systems know no locks.
            with h5py.File(content, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise InputError(
                        f"{path} is no feature cache of this version; run 'extract' again"
                    )
                recipe = FeatureRecipe.from_json(json.loads(file.attrs["recipe"]), where=str(path))
                names = list(file["ids"][:])
                described = file.attrs["digest"] == _digest(file.attrs["recipe"], names)
                ids = [name.decode() for name in names]
                checksums = file["checksums"][:]
                dataset = file["features"]
                shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged or no feature cache ({error}); run the stage 'extract' again"
            ) from None
        size = math.prod(shape) * dtype.itemsize
        ordered = len(ids) == len(checksums) == shape[0] and ids == sorted(set(ids))
        whole = offset is not None and os.fstat(content.fileno()).st_size >= offset + size
        if not (described and ordered and whole and dtype.kind == "f"):
            raise InputError(
                f"{path} is damaged: its rows and ids do not match; run 'extract' again"
            )
        array = np.memmap(content, dtype=dtype, mode="r", offset=offset, shape=shape)
    return Features(path, ids, recipe, array, checksums)
