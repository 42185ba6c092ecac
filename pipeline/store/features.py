"""The feature cache: one HDF5 file that describes itself.

`ids` are the picture ids, sorted; row i of `features` belongs to `ids[i]`. The layout (default
library version, no timestamps, one preallocated contiguous dataset) gives the same bytes for the
same values, in whatever order the rows were written, and can be memory-mapped: any number of
readers, shuffled reads, no handle to share, no lock.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.store.files import atomic
from pipeline.store.recipe import FeatureRecipe

FORMAT = "showtell features 2"


@dataclass(frozen=True)
class Features:
    """A cache opened for reading."""

    path: Path
    ids: list[str]
    recipe: FeatureRecipe
    array: NDArray[Any]  # (N, D) pooled or (N, H, W, D) grid, mapped, not loaded

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


class RowWriter:
    """Writes rows of a cache that is being made, in any order."""

    def __init__(self, file: BinaryIO, offset: int, dtype: str) -> None:
        self._file, self._offset, self._dtype = file, offset, dtype

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write `rows` (n, …) to the rows from `first` on."""
        content = np.ascontiguousarray(rows, dtype=self._dtype)
        self._file.seek(self._offset + first * content[0].nbytes)
        self._file.write(content.data)


@contextmanager
def create_features(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Iterator[RowWriter]:
    """Write rows of shape `shape`; the file appears at `path` when all is done.

    HDF5 lays the file out, and the rows go straight to where it says: the HDF5 library does not
    survive a disk that fills up, plain writes do.

    Args:
        ids: sorted, distinct; one a row.
        dtype: `float16` or `float32`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(ids) * int(np.prod(shape)) * np.dtype(dtype).itemsize
    if shutil.disk_usage(path.parent).free < size:  # say so now, rather than after an hour
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with atomic(path) as scratch:
        with h5py.File(scratch, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["recipe"] = json.dumps(recipe.to_json(), ensure_ascii=False)
            names = np.array([image_id.encode() for image_id in ids])
            file.create_dataset("ids", data=names, track_times=False)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            dataset = file.create_dataset(
                "features", (len(ids), *shape), dtype, dcpl=layout, track_times=False
            )
            offset = dataset.id.get_offset()
        with scratch.open("r+b") as rows:
            yield RowWriter(rows, offset, dtype)


def read_features(path: Path) -> Features:
    """Open a cache, checked for structure; values are checked as they are read.

    Raises:
        InputError: the file is absent, truncated, or no feature cache.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; the stage 'extract' makes it")
    try:
        # Without HDF5's own lock: the file came into place whole and nobody writes to it. Where a
        # file system knows no locks, or another program holds one, it is still there to be read.
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"{path} is no feature cache of this version; run 'extract' again")
            recipe = FeatureRecipe.from_json(json.loads(file.attrs["recipe"]), where=str(path))
            ids = [name.decode() for name in file["ids"][:]]
            dataset = file["features"]
            shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged or no feature cache ({error}); run the stage 'extract' again"
        ) from None
    size = int(np.prod(shape)) * dtype.itemsize
    ordered = len(ids) == shape[0] and ids == sorted(set(ids)) and dtype.kind == "f"
    if not ordered or offset is None or path.stat().st_size < offset + size:
        raise InputError(f"{path} is damaged: its rows and ids do not match; run 'extract' again")
    array = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return Features(path, ids, recipe, array)
