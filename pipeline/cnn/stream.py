"""Features of an archive's pictures, batch after batch, with all that the machine has at work.

On a CPU each of the worker threads decodes a batch and runs the CNN on it with one thread of its
own: no core ever waits for another at the end of a layer. Pillow, torch and zlib work outside
Python's lock, so threads do. A GPU wants more pictures than threads can decode under that lock:
it decodes JPEGs itself, where it can, and processes decode the rest. While one batch is computed
the one before it is fetched and summed up.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cnn.frozen import FrozenCNN
from pipeline.cnn.nvjpeg import prepare_on_gpu
from pipeline.cnn.prepare import Prepared, prepare, stack
from pipeline.errors import InputError
from pipeline.store.features import checksums_of
from pipeline.store.pictures import PictureArchive
from pipeline.store.recipe import FeatureRecipe

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_DECODERS = 4  # threads that feed its JPEG decoder
MANY = 4000  # pictures for which it pays to start processes


@dataclass(frozen=True)
class Rows:
    """Features of some pictures as they are stored."""

    values: NDArray[Any]  # (n, …)
    finite: NDArray[np.bool_]  # (n,)
    checksums: NDArray[np.uint32]  # (n,)


def features_of(
    archive: PictureArchive,
    ids: Sequence[str],
    cnn: FrozenCNN,
    batch: int,
    workers: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Rows]:
    """Features, of `batch` pictures at a time, in the order of `ids`.

    Args:
        dtype: in which they are stored.

    Raises:
        InputError: a picture cannot be used.
    """
    parts = [ids[begin : begin + batch] for begin in range(0, len(ids), batch)]
    if cnn.device.type == "cpu":

        def compute(part: Sequence[str]) -> Rows:
            features = cnn(stack(load(archive, part, cnn.recipe)))
            return _summed_up(*_stored(features, dtype))

        with _workers(workers) as pool:
            yield from in_order(pool, compute, parts, ahead=2 * workers)
        return
    with (
        ThreadPoolExecutor(2) as finishers,
        closing(_loaded(archive, parts, cnn, workers)) as loaded,
    ):
        fetched = _fetched((cnn(pictures) for pictures in loaded), dtype)
        yield from in_order(finishers, lambda both: _summed_up(*both), fetched, ahead=2)


def load(archive: PictureArchive, ids: Sequence[str], recipe: FeatureRecipe) -> list[Prepared]:
    """Prepared pictures of the archive.

    Raises:
        InputError: one of them cannot be used.
    """
    return [prepare(archive.content(one), f"{one} in {archive.path}", recipe) for one in ids]


def _loaded(
    archive: PictureArchive, parts: Sequence[Sequence[str]], cnn: FrozenCNN, workers: int
) -> Generator[list[Tensor]]:
    """For each view uint8 (B, S, S, 3), on the GPU or in memory that it reads."""
    if cnn.recipe.jpeg_decoder == "nvjpeg":

        def decode(part: Sequence[str]) -> list[Tensor]:
            contents = [archive.content(one) for one in part]
            names = [f"{one} in {archive.path}" for one in part]
            return prepare_on_gpu(contents, names, cnn.recipe, cnn.device)

        with _workers(min(workers, GPU_DECODERS)) as pool:
            yield from in_order(pool, decode, parts, ahead=GPU_DECODERS + 2)
    elif sum(map(len, parts)) >= MANY:
        yield from decoded_by_processes(archive.path, parts, cnn.recipe, workers, pin=True)
    else:
        with _workers(workers) as pool:
            yield from in_order(
                pool,
                lambda part: [one.pin_memory() for one in stack(load(archive, part, cnn.recipe))],
                parts,
                ahead=workers + 2,
            )


class _Batches(Dataset[list[Tensor] | InputError]):
    """Batches of an archive, for processes that each open it for themselves."""

    def __init__(self, images: Path, parts: Sequence[Sequence[str]], recipe: FeatureRecipe) -> None:
        self._images, self._parts, self._recipe = images, parts, recipe
        self._archive: PictureArchive | None = None

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> list[Tensor] | InputError:
        if self._archive is None:
            self._archive = PictureArchive(self._images)
        try:
            return stack(load(self._archive, self._parts[number], self._recipe))
        except InputError as error:  # raised in another process, it would come with its traceback
            return error


def decoded_by_processes(
    images: Path, parts: Sequence[Sequence[str]], recipe: FeatureRecipe, workers: int, pin: bool
) -> Iterator[list[Tensor]]:
    """For each view uint8 (B, S, S, 3), of each part.

    Args:
        pin: into memory that a GPU reads.

    Raises:
        InputError: a picture cannot be used.
    """
    loader = DataLoader(
        _Batches(images, parts, recipe),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="forkserver",  # a fork would take a GPU's state along
    )
    for pictures in loader:
        if isinstance(pictures, InputError):
            raise pictures
        yield pictures


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
            yield _arrived(*underway.popleft())
    while underway:
        yield _arrived(*underway.popleft())


def _copied(part: Tensor) -> Tensor:
    copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return copy.copy_(part, non_blocking=True)


def _arrived(parts: tuple[Tensor, Tensor], copied: torch.cuda.Event) -> tuple[Tensor, Tensor]:
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


def in_order(
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
