"""Features of an archive's images, batch after batch, with all that the machine has at work.

On a CPU each of the worker threads decodes a batch and runs the CNN on it with one thread of its
own: no core ever waits for another at the end of a layer. Beside a GPU the workers decode, or hand
it the JPEGs to decode, and while one batch is computed the one before it is fetched and summed up.
Pillow, torch and zlib work outside Python's lock, so threads do, and nothing is copied between
processes. (On 16 cores that lock limits Pillow all the same: docs/performance.md.)
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.nvjpeg import prepare_on_gpu
from pipeline.extraction.preprocess import PreprocessedViews, collate, preprocess
from pipeline.features.feature_cache import checksums_of
from pipeline.features.recipe import FeatureRecipe
from pipeline.images.archive import ImageArchive

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_DECODERS = 4  # threads that feed its JPEG decoder


@dataclass(frozen=True)
class Rows:
    """Features of some images as they are stored."""

    values: NDArray[Any]  # (n, …)
    finite: NDArray[np.bool_]  # (n,)
    checksums: NDArray[np.uint32]  # (n,)


def iter_features(
    archive: ImageArchive,
    ids: Sequence[str],
    cnn: FeatureExtractor,
    batch: int,
    workers: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Rows]:
    """Features, of `batch` images at a time, in the order of `ids`.

    Args:
        dtype: in which they are stored.

    Raises:
        InputError: an image cannot be used.
    """
    parts = [ids[begin : begin + batch] for begin in range(0, len(ids), batch)]
    if cnn.device.type == "cpu":

        def compute(part: Sequence[str]) -> Rows:
            features = cnn(collate(load(archive, part, cnn.recipe)))
            return _summed_up(*_stored(features, dtype))

        with _workers(workers) as pool:
            yield from ordered_map(pool, compute, parts, ahead=2 * workers)
        return
    with (
        ThreadPoolExecutor(2) as finishers,
        closing(_loaded(archive, parts, cnn, workers)) as loaded,
    ):
        fetched = _fetched((cnn(images) for images in loaded), dtype)
        yield from ordered_map(finishers, lambda both: _summed_up(*both), fetched, ahead=2)


def load(
    archive: ImageArchive, ids: Sequence[str], recipe: FeatureRecipe
) -> list[PreprocessedViews]:
    """Prepared images of the archive.

    Raises:
        InputError: one of them cannot be used.
    """
    return [preprocess(archive.content(one), f"{one} in {archive.path}", recipe) for one in ids]


def _loaded(
    archive: ImageArchive, parts: Sequence[Sequence[str]], cnn: FeatureExtractor, workers: int
) -> Generator[list[Tensor]]:
    """For each view uint8 (B, S, S, 3), on the GPU or in memory that it reads."""
    if cnn.recipe.jpeg_decoder == "nvjpeg":

        def decode(part: Sequence[str]) -> list[Tensor]:
            contents = [archive.content(one) for one in part]
            names = [f"{one} in {archive.path}" for one in part]
            return prepare_on_gpu(contents, names, cnn.recipe, cnn.device)

        with _workers(min(workers, GPU_DECODERS)) as pool:
            yield from ordered_map(pool, decode, parts, ahead=GPU_DECODERS + 2)
    else:
        with _workers(workers) as pool:
            yield from ordered_map(
                pool,
                lambda part: [one.pin_memory() for one in collate(load(archive, part, cnn.recipe))],
                parts,
                ahead=workers + 2,
            )


def _stored(features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As they are stored, and which of them are finite."""
    stored = features.to(dtype)
    return stored, torch.isfinite(stored).flatten(1).all(dim=1)


def _summed_up(stored: Tensor, finite: Tensor) -> Rows:
    values = stored.numpy()
    return Rows(values, finite.numpy(), checksums_of(values))


def _fetched(computed: Iterable[Tensor], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """What `_stored` gives, on the CPU; each batch is fetched while the next one is computed."""
    underway: deque[tuple[tuple[Tensor, Tensor], torch.cuda.Event]] = deque()
    for features in computed:  # enqueued, as are the copies behind it
        stored, finite = (_copied(part) for part in _stored(features, dtype))
        underway.append(((stored, finite), torch.cuda.Event()))
        underway[-1][1].record()
        if len(underway) > 1:
            yield _wait_for_copy(*underway.popleft())
    while underway:
        yield _wait_for_copy(*underway.popleft())


def _copied(part: Tensor) -> Tensor:
    copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return copy.copy_(part, non_blocking=True)


def _wait_for_copy(parts: tuple[Tensor, Tensor], copied: torch.cuda.Event) -> tuple[Tensor, Tensor]:
    copied.synchronize()
    return parts


@contextmanager
def _workers(count: int) -> Iterator[Executor]:
    """Threads that share the cores among themselves: inside torch, each has one."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def ordered_map(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`pool.map` with a bounded window: memory does not grow with the number of items."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
