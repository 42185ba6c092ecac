"""The cached features of one split: on the device if they fit, else mapped from the file."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.feature_cache import FeatureCache
from pipeline.distributed.part import Part, draw_rows
from pipeline.runtime.errors import ArtifactError

ORIGINAL = 0.4  # the probability of the image itself among its augmentations (docs/results.md)
CHUNK = 4_000_000  # numbers read together
RESIDENT_BYTES = 2**29  # of vectors on a CPU
READERS = 8  # threads that read and verify rows for a GPU


class FeatureDataset:
    """The features of N images, by index.

    They are held on a GPU with room for twice as much, and so are up to half a gigabyte of vectors
    on a CPU. Others stay in the memory-mapped file, whose pages all processes share. Rows are
    checksummed on every read from the file: disks can corrupt data during long runs.
    """

    def __init__(
        self,
        cache: FeatureCache,
        ids: Sequence[str],
        device: torch.device,
        augmented: bool = False,
    ) -> None:
        """
        Args:
            augmented: whether `draw` may use the images' augmentations.

        Raises:
            InputError: an image is not in the cache, or its features are damaged or not finite.
        """
        numbers = 1 + cache.augmentations if augmented else 1
        # (1 + augmentations, N), in the file; an image's own features come first.
        self._rows = cache.row_indices(ids) + len(cache.ids) * np.arange(numbers)[:, None]
        self._cache, self.device = cache, device
        self.shape = cache.array.shape[1:]
        self._resident: Tensor | None = None
        if self._fits():
            kind = getattr(torch, cache.array.dtype.name)
            self._resident = torch.empty(self._rows.size, *self.shape, dtype=kind, device=device)
        self.mean, self.std = self._compute_stats()

    def __len__(self) -> int:
        return self._rows.shape[1]

    def __getitem__(self, images: Tensor | slice) -> Tensor:
        """float32 (P, …) on the device, of images (P,) by index, or of a slice; an ArtifactError if
        rows of the file are damaged."""
        if isinstance(images, slice):
            images = torch.arange(*images.indices(len(self)))
        return self._read(images)

    def draw(self, images: Tensor, part: Part | None = None) -> Tensor:
        """As `self[images]`, but each image's features are those of one of its augmentations with a
        probability of 1 - ORIGINAL, if there are any.

        Args:
            part: which of the images to read; None: all.
        """
        number = len(self._rows) - 1
        images = images if part is None else images[part.rows]
        if not number:
            return self._read(images)
        chosen = draw_rows(torch.rand, images.shape, part)  # one number an image decides all
        views = 1 + ((chosen - ORIGINAL) / (1 - ORIGINAL) * number).long().clamp(max=number - 1)
        views = torch.where(chosen < ORIGINAL, 0, views)
        return self._read(images + len(self) * views.to(images.device))

    def _read(self, index: Tensor) -> Tensor:
        """float32 (P, …) of the flattened rows with these indices (P,)."""
        if self._resident is not None:
            return self._resident[index.to(self.device)].float()
        rows = self._rows.reshape(-1)[index.cpu().numpy()]
        return torch.from_numpy(self._cache.read_verified(rows)).to(self.device).float()

    def _fits(self) -> bool:
        size = self._rows.size * math.prod(self.shape) * self._cache.array.dtype.itemsize
        if self.device.type == "cuda":
            return 2 * size < torch.cuda.mem_get_info(self.device)[0]
        return len(self.shape) == 1 and size <= RESIDENT_BYTES

    def _compute_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) over images and cells, float32, without augmentations.

        This pass reads and verifies every row, and fills the copy on the device.
        """
        total, squares = torch.zeros(2, self.shape[-1], dtype=torch.float64, device=self.device)
        begin = 0
        for rows in self._parts():
            part = torch.from_numpy(rows).to(self.device)
            if self._resident is not None:
                self._resident[begin : begin + len(part)] = part
            begin += len(part)
            if begin > len(self):
                part = part[: max(0, len(part) - (begin - len(self)))]
            part = part.double().flatten(0, -2)  # (P * cells, D)
            total, squares = total + part.sum(dim=0), squares + part.square().sum(dim=0)
        if not torch.isfinite(squares).all():
            raise ArtifactError(self._cache.path, "has numbers that are not finite")
        count = len(self) * math.prod(self.shape[:-1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        return mean.float(), variance.sqrt().float()

    def _parts(self) -> Iterator[np.ndarray]:
        """All rows in order, in chunks, verified; for a GPU by several threads."""
        images = max(1, CHUNK // math.prod(self.shape))
        rows = self._rows.reshape(-1)
        parts = [rows[begin : begin + images] for begin in range(0, len(rows), images)]
        read = self._cache.read_verified
        if self.device.type == "cpu":
            yield from map(read, parts)
            return
        with ThreadPoolExecutor(READERS) as readers:
            for begin in range(0, len(parts), 2 * READERS):
                yield from readers.map(read, parts[begin : begin + 2 * READERS])


def add_noise(features: Tensor, std: Tensor, noise: float, part: Part | None = None) -> Tensor:
    """Add Gaussian noise of `noise` times its standard deviation (D,) to each feature (…, D), of
    all images of a batch or of this part.

    Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural Computation 1995.
    """
    if not noise:
        return features
    numbers = draw_rows(partial(torch.randn, device=features.device), features.shape, part)
    return features + noise * std * numbers
