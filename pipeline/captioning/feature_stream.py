"""Features of any images as they come, with all cores or the GPU busy."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
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
) -> Iterator[Result | InputError]:
    """Yield what `work` makes of each image's features, or why it cannot be read, in order.

    On a CPU each thread reads a few images and runs the CNN on them by itself, as extraction does;
    on a GPU the threads only read. Memory does not grow with the number of images.

    Args:
        work: features (P, …) -> P results.
        images: an InputError in an image's place is passed on.
        lock: held while the GPU computes.
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
        for together in _chunks(batches, max(1, SEARCH_BATCH // size)):
            results = _compute(together, work, cnn, lock)
            for batch in together:
                for outcome in batch.outcomes:
                    yield outcome if isinstance(outcome, InputError) else next(results)


def _compute(
    batches: list[Batch],
    work: Callable[[Tensor], list[Result]],
    cnn: FeatureExtractor,
    lock: AbstractContextManager[object],
) -> Iterator[Result]:
    views = [image for batch in batches for image in batch.views]
    if not views:
        return iter(())
    with lock:
        computed = [batch.features for batch in batches if batch.features is not None]
        return iter(work(torch.cat(computed) if computed else cnn(collate(views))))


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
