"""Extract features batch by batch, with all cores or the GPU busy.

On a CPU each worker thread decodes a batch and runs the CNN on it with a single torch thread, so no
core waits for another at the end of a layer. With a GPU the workers decode, or pass it the JPEGs to
decode; while one batch is computed, the previous one is copied back and checksummed. Pillow, torch
and zlib release Python's lock, so threads suffice and processes need not copy data. (On 16 cores
the lock still limits Pillow: docs/performance.md.)
"""

import os
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
from pipeline.extraction.nvjpeg import preprocess_on_gpu
from pipeline.extraction.preprocess import PreprocessedViews, Sample, collate, preprocess
from pipeline.features.cache_file import row_checksums
from pipeline.features.recipe import FeatureRecipe
from pipeline.images.archive import ImageArchive

Item = TypeVar("Item")
Result = TypeVar("Result")

NVJPEG_THREADS = 4
MAX_DECODE_THREADS = 16


@dataclass(frozen=True)
class Rows:
    """Features of a batch, as they are stored."""

    values: NDArray[Any] | None  # (n, …); None: another process has written them
    finite: NDArray[np.bool_]  # (n,)
    checksums: NDArray[np.uint32]  # (n,)


def iter_features(
    archive: ImageArchive,
    samples: Sequence[Sample],
    cnn: FeatureExtractor,
    batch: int,
    workers: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Rows]:
    """Yield features in the dtype to store, batch by batch, in the order of `samples`.

    Raises:
        InputError: an image cannot be used.
    """
    batches = [samples[begin : begin + batch] for begin in range(0, len(samples), batch)]
    if cnn.device.type == "cpu":

        def compute(batch: Sequence[Sample]) -> Rows:
            features = cnn(collate(load(archive, batch, cnn.recipe)))
            return _add_checksums(*_to_stored(features, dtype))

        with single_threaded_workers(workers) as pool:
            yield from ordered_map(pool, compute, batches, ahead=2 * workers)
        return
    with (
        ThreadPoolExecutor(2) as pool,
        closing(_load_batches(archive, batches, cnn, workers)) as loaded,
    ):
        copied = _copy_to_cpu((cnn(images) for images in loaded), dtype)
        yield from ordered_map(pool, lambda stored: _add_checksums(*stored), copied, ahead=2)


def load(
    archive: ImageArchive, samples: Sequence[Sample], recipe: FeatureRecipe
) -> list[PreprocessedViews]:
    """Read and preprocess images; an InputError names one that cannot be used."""
    return [
        preprocess(
            archive.read(sample.image_id), recipe, f"{sample.image_id} in {archive.path}", sample
        )
        for sample in samples
    ]


def _load_batches(
    archive: ImageArchive, batches: Sequence[Sequence[Sample]], cnn: FeatureExtractor, workers: int
) -> Generator[list[Tensor]]:
    """Yield per view uint8 (B, S, S, 3), on the GPU or in pinned memory."""
    recipe = cnn.recipe
    if recipe.jpeg_decoder == "nvjpeg":

        def load_batch(batch: Sequence[Sample]) -> list[Tensor]:
            contents = [archive.read(sample.image_id) for sample in batch]
            names = [f"{sample.image_id} in {archive.path}" for sample in batch]
            return preprocess_on_gpu(contents, names, recipe, cnn.device, batch)

        workers, ahead = min(workers, NVJPEG_THREADS), NVJPEG_THREADS + 2
    else:

        def load_batch(batch: Sequence[Sample]) -> list[Tensor]:
            return [view.pin_memory() for view in collate(load(archive, batch, recipe))]

        ahead = workers + 2
    with single_threaded_workers(workers) as pool:
        yield from ordered_map(pool, load_batch, batches, ahead)


def _to_stored(features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the features in the stored dtype, and which rows are finite."""
    stored = features.to(dtype)
    return stored, torch.isfinite(stored).flatten(1).all(dim=1)


def _add_checksums(stored: Tensor, finite: Tensor) -> Rows:
    values = stored.numpy()
    return Rows(values, finite.numpy(), row_checksums(values))


def _copy_to_cpu(computed: Iterable[Tensor], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the output of `_to_stored` on the CPU; copy each batch while the next is computed."""
    pending: deque[tuple[tuple[Tensor, Tensor], torch.cuda.Event]] = deque()
    for features in computed:  # the GPU's queue holds the batch and its copies
        stored, finite = (_copy_to_pinned(tensor) for tensor in _to_stored(features, dtype))
        pending.append(((stored, finite), torch.cuda.Event()))
        pending[-1][1].record()
        if len(pending) > 1:
            yield _wait_for_copy(*pending.popleft())
    while pending:
        yield _wait_for_copy(*pending.popleft())


def _copy_to_pinned(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def _wait_for_copy(
    tensors: tuple[Tensor, Tensor], copied: torch.cuda.Event
) -> tuple[Tensor, Tensor]:
    copied.synchronize()
    return tensors


@contextmanager
def single_threaded_workers(count: int) -> Iterator[Executor]:
    """Yield a pool of threads in which torch uses one thread each. At the end it drops what it has
    not begun."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def ordered_map(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Do `pool.map`, at most `ahead` items ahead: memory does not grow with their number."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def default_num_workers(device: torch.device) -> int:
    """Return one thread per core; with a GPU, not more than it can use."""
    # A cluster job may only use some of the machine's cores; macOS does not tell which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) if device.type == "cpu" else min(cores or 1, MAX_DECODE_THREADS)
