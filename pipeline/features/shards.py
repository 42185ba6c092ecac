"""A feature cache in several files: a folder with shards, and an index that has all but the rows.

The index is HDF5 too: `features` there is a virtual dataset of all shards' rows, so that h5py reads
them as one. Here rows are read from the shards themselves, each opened when it is first needed: a
virtual dataset would give zeros for a shard that is not there.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.features.cache_file import (
    CHECKSUM_DTYPE,
    USER_BLOCK,
    CacheSpec,
    Layout,
    read_cache_file,
    read_layout,
    seal,
)
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.errors import ArtifactError, InputError

INDEX = "index.h5"
NO_ROWS = Layout(0, USER_BLOCK, 0, USER_BLOCK)  # all of an index is HDF5's own part


@dataclass
class ShardedRows:
    """The rows of a folder of shards, indexed as an array is by an array of row indices."""

    folder: Path
    names: list[str]
    ends: NDArray[np.int64]  # (S,), the row after each shard's last
    shape: tuple[int, ...]  # (R, D) or (R, H, W, D)
    dtype: np.dtype[Any]
    ids: list[str]  # N
    _open: dict[int, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows (n, …); an InputError if their shard is missing or another cache's."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(shards).tolist():
            mine = shards == number
            values[mine] = self._shard(number)[rows[mine] - self._begin(number)]
        return values

    def _begin(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def _shard(self, number: int) -> NDArray[Any]:
        if number not in self._open:
            path = self.folder / self.names[number]
            if not path.exists():
                raise _missing(path)
            file = read_cache_file(path)
            rows = (self._begin(number), int(self.ends[number]))
            info, array = file.shard, file.array
            ids = [self.ids[row % len(self.ids)] for row in range(*rows)]
            same = info and (info.begin, info.end) == rows and file.ids == ids
            if not (same and (array.shape[1:], array.dtype) == (self.shape[1:], self.dtype)):
                raise ArtifactError(path, f"is not the shard of {self.folder} with these rows")
            self._open[number] = array
        return self._open[number]


def _missing(path: Path) -> InputError:
    return InputError(f"{path} does not exist; run 'dvc pull {path}' to fetch it, or 'dvc repro'")


def is_shard_folder(path: Path) -> bool:
    """Whether a path is such a folder, and not any other."""
    return (path / INDEX).is_file()


def write_index(path: Path, spec: CacheSpec, names: list[str], checksums: NDArray[Any]) -> None:
    """Write the index of shards beside it.

    Args:
        names: of the shards' files, in the order of their rows.
        checksums: (R,), of all rows.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple((spec.num_rows, *spec.shape))
    rest = [0] * len(spec.shape)
    for name, rows in zip(names, spec.shards, strict=True):
        shape = (len(rows), *spec.shape)
        space.select_hyperslab((rows.start, *rest), shape)
        own = h5py.h5s.create_simple(shape)
        properties.set_virtual(space, name.encode(), b"features", own)
    space.select_all()
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        file.attrs["recipe"] = json.dumps(asdict(spec.recipe), ensure_ascii=False)
        columns = {
            "ids": np.array([image_id.encode() for image_id in spec.ids]),
            "checksums": np.asarray(checksums, CHECKSUM_DTYPE),
            "names": np.array([name.encode() for name in names]),
            "ends": np.array([rows.stop for rows in spec.shards]),
        }
        for name, values in columns.items():
            file.create_dataset(name, data=values, track_times=False)
        kind = h5py.h5t.py_create(np.dtype(spec.dtype), logical=True)
        h5py.h5d.create(file.id, b"features", kind, space, properties)
    seal(path, NO_ROWS)


@dataclass(frozen=True)
class Index:
    """An index opened for reading."""

    ids: list[str]  # N
    recipe: FeatureRecipe
    rows: ShardedRows
    checksums: NDArray[np.uint32]  # (R,)


def read_index(folder: Path) -> Index:
    """Open the index in a folder of shards; the shards are opened when they are read.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as content:
        if read_layout(content) != NO_ROWS:
            raise ArtifactError(path, "is damaged or not an index of this version")
        with h5py.File(content, "r") as file:  # sealed, and so as it was written
            recipe = FeatureRecipe.from_json(json.loads(file.attrs["recipe"]), where=str(path))
            ids = [name.decode() for name in file["ids"][:]]
            features = file["features"]
            names = [name.decode() for name in file["names"][:]]
            layout = (features.shape, features.dtype, ids)
            rows = ShardedRows(folder, names, file["ends"][:], *layout)
            return Index(ids, recipe, rows, file["checksums"][:])
