"""Any images as they come, from files to captions, with all cores or the GPU busy.

On a CPU threads of one core each read a few images and run the CNN on them, as extraction does, or
search a few images' captions. So no core waits for another at the end of a layer or of a step. On a
GPU the threads only read.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pipeline.extraction.feature_extractor import FeatureExtractor, default_batch_size
from pipeline.extraction.preprocess import PreprocessedViews, collate, preprocess
from pipeline.extraction.stream import default_num_workers, ordered_map, single_threaded_workers
from pipeline.images.decode import ImageSource
from pipeline.runtime.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

SEARCH_BATCH = 32  # images searched at once


class Batch(NamedTuple):
    """A few images as read, and on a CPU the features of those that could be."""

    outcomes: list[PreprocessedViews | InputError]
    features: Tensor | None  # (P, …)

    @property
    def views(self) -> list[PreprocessedViews]:
        return [outcome for outcome in self.outcomes if not isinstance(outcome, InputError)]


def map_features(
    work: Callable[[Tensor], list[Result]],
    images: Iterable[ImageSource | InputError],
    cnn: FeatureExtractor,
    lock: AbstractContextManager[object],
    *,
    concurrent: bool,
) -> Iterator[Result | InputError]:
    """Yield what `work` makes of each image's features, or why it cannot be read, in order.

    Memory does not grow with the number of images.

    Args:
        work: features (P, …) -> P results.
        images: an InputError in an image's place is passed on.
        lock: held while the GPU computes.
        concurrent: on a CPU, several threads may do `work` at once.
    """
    size, threads = default_batch_size(cnn.recipe, cnn.device), default_num_workers(cnn.device)
    on_cpu = cnn.device.type == "cpu"

    def read(sources: list[ImageSource | InputError]) -> Batch:
        batch = Batch([_read(source, cnn) for source in sources], None)
        if not on_cpu or not batch.views:
            return batch
        return batch._replace(features=cnn(collate(batch.views)))

    with single_threaded_workers(threads) as pool:
        batches = ordered_map(pool, read, _chunks(images, size), ahead=2 * threads)
        groups = _chunks(batches, max(1, SEARCH_BATCH // size))
        compute = partial(_compute, work, cnn, lock)
        if on_cpu and concurrent:
            results = ordered_map(pool, compute, groups, ahead=threads - 1)
        else:
            results = map(compute, groups)
        for outcomes in results:
            yield from outcomes


def _compute(
    work: Callable[[Tensor], list[Result]],
    cnn: FeatureExtractor,
    lock: AbstractContextManager[object],
    batches: list[Batch],
) -> list[Result | InputError]:
    """What `work` makes of each image, or why it cannot be read."""
    views = [image for batch in batches for image in batch.views]
    results: Iterator[Result] = iter(())
    if views:
        with lock:
            computed = [batch.features for batch in batches if batch.features is not None]
            results = iter(work(torch.cat(computed) if computed else cnn(collate(views))))
    return [
        outcome if isinstance(outcome, InputError) else next(results)
        for batch in batches
        for outcome in batch.outcomes
    ]


def _read(
    source: ImageSource | InputError, cnn: FeatureExtractor
) -> PreprocessedViews | InputError:
    try:
        return source if isinstance(source, InputError) else preprocess(source, cnn.recipe)
    except InputError as error:
        return error


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def raise_errors(outcomes: Iterator[Result | InputError]) -> Iterator[Result]:
    """The results alone; the first error is raised."""
    for outcome in outcomes:
        if isinstance(outcome, InputError):
            raise outcome
        yield outcome
