"""The feature cache: one HDF5 file that describes itself, or a folder of several with an index.

`ids` are the sorted image ids, N of them; row i belongs to `ids[i]`, and row i + k * N, if there is
one, is its augmentation of number k. `checksums[i]` is row i's CRC-32, verified on every read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.cache_file import read_cache_file, row_checksums
from pipeline.features.recipe import FeatureRecipe
from pipeline.features.shards import INDEX, ShardedRows, read_index
from pipeline.runtime.errors import ArtifactError, pluralize


@dataclass(frozen=True)
class FeatureCache:
    """A cache opened for reading."""

    path: Path
    ids: list[str]  # N
    recipe: FeatureRecipe
    # (R, D) pooled or (R, H, W, D) grid, memory-mapped; R = (1 + augmentations) * N
    array: NDArray[Any] | ShardedRows
    checksums: NDArray[np.uint32]  # (R,)

    @property
    def augmentations(self) -> int:
        """Further views of each image; that of number k of row i is row i + k * N."""
        return len(self.array) // len(self.ids) - 1

    @property
    def index(self) -> Path:
        """The file that changes whenever a row does."""
        return self.path / INDEX if self.path.is_dir() else self.path

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


def read_features(path: Path) -> FeatureCache:
    """Open a cache and check its structure; rows are verified when they are read.

    Raises:
        ArtifactError: the file or the folder's index is missing, damaged, or not a feature cache.
    """
    if path.is_dir():
        index = read_index(path)
        return FeatureCache(path, index.ids, index.recipe, index.rows, index.checksums)
    file = read_cache_file(path)
    if file.shard:
        raise ArtifactError(path, "is a shard of a feature cache; name its folder, or merge it")
    return FeatureCache(path, file.ids, file.recipe, file.array, file.checksums)
