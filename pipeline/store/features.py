"""The feature cache: one HDF5 file that describes itself.

`ids` are the picture ids, sorted; row i of `features` belongs to `ids[i]`. The layout (default
library version, no timestamps, one preallocated contiguous dataset) gives the same bytes for the
same values, in whatever order the rows were written, and can be memory-mapped: any number of
readers, shuffled reads, no handle to share, no lock.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.store.files import atomic
from pipeline.store.recipe import FeatureRecipe

FORMAT = "showtell features 1"


@dataclass(frozen=True)
class Features:
    """A cache opened for reading."""

    path: Path
    ids: list[str]
    recipe: FeatureRecipe
    array: NDArray[Any]  # (N, D) pooled or (N, H, W, D) grid, mapped, not loaded

    def rows(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """The features of these pictures, in this order, as float32.

        Raises:
            InputError: a picture is not in the cache, or its features are not finite.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        missing = [image_id for image_id in ids if image_id not in row_of]
        if missing:
            raise InputError(
                f"{self.path} lacks {len(missing)} pictures, {missing[0]!r} among them; "
                "run the stage 'extract' again"
            )
        rows = self.array[[row_of[image_id] for image_id in ids]].astype(np.float32)
        if not np.isfinite(rows).all():
            raise InputError(f"{self.path} holds numbers that are not finite; run 'extract' again")
        return rows


@contextmanager
def create_features(
    path: Path, ids: Sequence[str], shape: Sequence[int], dtype: str, recipe: FeatureRecipe
) -> Iterator[h5py.Dataset]:
    """A dataset (N, *shape) to write rows of; the file appears at `path` when all is done.

    Args:
        ids: sorted, distinct; one a row.
        dtype: `float16` or `float32`.
    """
    names = np.array([image_id.encode() for image_id in ids])
    with atomic(path) as scratch, h5py.File(scratch, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["recipe"] = json.dumps(recipe.to_json(), ensure_ascii=False)
        file.create_dataset("ids", data=names, track_times=False)
        yield file.create_dataset(
            "features", shape=(len(ids), *shape), dtype=dtype, track_times=False
        )


def read_features(path: Path) -> Features:
    """Open a cache, checked for structure; values are checked as they are read.

    Raises:
        InputError: the file is absent, truncated, or no feature cache.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; the stage 'extract' makes it")
    try:
        with h5py.File(path, "r") as file:
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
