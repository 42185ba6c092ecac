"""Stage 4: the frozen CNN over every picture, once, into one HDF5 file."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from torch import Tensor

from pipeline.cnn.frozen import FrozenCNN
from pipeline.cnn.precision import fastest_faithful
from pipeline.cnn.prepare import Prepared, prepare, stack
from pipeline.config import read
from pipeline.config.extract import ExtractConfig
from pipeline.device import choose_device, fast_precisions, make_repeatable
from pipeline.errors import InputError, counted
from pipeline.progress import bar
from pipeline.store.checkpoint import Checkpoint, run_fingerprint
from pipeline.store.pictures import PictureArchive
from pipeline.store.recipe import FeatureRecipe, Preprocessing, View
from pipeline.store.rows import resume_features
from pipeline.store.weights import Backbone, read_backbones

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_DECODERS = 16
PROBED = 64  # pictures that tell which precision will do


def extract(images: Path, weights: Path, out: Path, config: ExtractConfig) -> None:
    """Write the features of every picture in the archive `images` to `out`.

    A run that was killed goes on where it stood, and ends with the same bytes; where pictures have
    changed since, before the first of them.

    Raises:
        InputError: a picture or the weights cannot be used, or a feature is not finite.
    """
    device = choose_device(config.device)
    make_repeatable(seed=0)
    backbones = read_backbones(weights)
    recipe = make_recipe(backbones, config)
    batch = auto_batch(recipe, device) if config.batch_size == "auto" else config.batch_size
    with PictureArchive(images) as archive:
        ids, contents = archive.ids, archive.contents
        cnn = _frozen_cnn(backbones, recipe, device, config.precision, batch, archive)
    shape = cnn.feature_shape
    workers = auto_workers(device) if config.workers == "auto" else config.workers

    # In another precision, of other batches, or by another decoder of pictures, a feature may
    # differ in its last bits.
    versions = [version(name) for name in ("pillow", "torchvision")]
    fingerprint = run_fingerprint(
        [config.model_dump(), str(cnn.precision), batch, versions], [weights], device.type
    )
    checkpoint = Checkpoint(out, fingerprint, config.checkpoint_seconds)
    made_of = (ids, shape, config.dtype, recipe)
    with resume_features(out, *made_of, checkpoint, contents, batch) as rows:
        began, left = time.monotonic(), ids[rows.done :]
        with bar(label="extract", total=len(ids), unit="picture", initial=rows.done) as progress:
            for features in features_of(images, left, cnn, batch, workers):
                stored = features.to(getattr(torch, config.dtype))
                _check_finite(stored, ids[rows.done : rows.done + len(stored)], config)
                rows.append(stored.numpy())
                progress.update(len(stored))
                if checkpoint.due:
                    rows.save(checkpoint)
    if not left:
        return  # it was there already
    seconds = time.monotonic() - began
    log.info(
        "%s in %.0f s, %.1f a second: %s, %s on %s",
        *(counted(len(left), "picture"), seconds, len(left) / seconds),
        *(recipe.label, cnn.precision, device),
    )


def _frozen_cnn(
    backbones: Sequence[Backbone],
    recipe: FeatureRecipe,
    device: torch.device,
    precision: str,
    batch: int,
    archive: PictureArchive,
) -> FrozenCNN:
    """The CNN in the precision that the params name, or that a probe of the archive chooses."""

    def build(dtype: torch.dtype) -> FrozenCNN:
        return FrozenCNN(backbones, recipe, device, dtype, batch)

    def sample() -> list[Prepared]:
        return _load(archive, archive.ids[:PROBED], recipe)

    if precision != "auto":
        return build(getattr(torch, precision))
    return fastest_faithful(build, fast_precisions(device), sample, batch)


def _load(archive: PictureArchive, ids: Sequence[str], recipe: FeatureRecipe) -> list[Prepared]:
    """Prepared pictures of the archive."""
    return [prepare(archive.content(one), f"{one} in {archive.path}", recipe) for one in ids]


def make_recipe(backbones: Sequence[Backbone], config: ExtractConfig) -> FeatureRecipe:
    """How features are made with these weights and params: every backbone sees every size."""
    return FeatureRecipe(
        layer=config.layer,
        framing=config.framing,
        mirrored=config.mirrored,
        cells=config.cells,
        views=tuple(
            View(
                backbone=backbone.name,
                weights=backbone.weights,
                weights_digest=backbone.digest,
                preprocessing=_sized(backbone.preprocessing, size),
            )
            for backbone in backbones
            for size in config.image_size
        ),
    )


def _sized(pre: Preprocessing, size: int | None) -> Preprocessing:
    """The same margin around the crop, at another size."""
    if size is None:
        return pre
    return replace(pre, resize=round(pre.resize * size / pre.size), size=size)


def features_of(
    images: Path, ids: Sequence[str], cnn: FrozenCNN, batch: int, workers: int
) -> Iterator[Tensor]:
    """Features, float32 on the CPU, of `batch` pictures at a time, in the order of `ids`.

    On a CPU each of the worker threads decodes a batch and runs the CNN on it with one thread of
    its own: no core ever waits for another at the end of a layer. Beside a GPU the workers decode,
    and while one batch is computed the one before it is fetched. Pillow and torch work outside
    Python's lock, so threads do, and nothing is copied between processes.
    """
    own = threading.local()

    def load(part: Sequence[str]) -> list[Tensor]:
        if not hasattr(own, "archive"):
            own.archive = PictureArchive(images)  # a handle a worker: seeks must not mix
        return stack(_load(own.archive, part, cnn.recipe))

    parts = [ids[begin : begin + batch] for begin in range(0, len(ids), batch)]
    with _workers(workers) as pool:
        if cnn.device.type == "cpu":
            yield from in_order(pool, lambda part: cnn(load(part)), parts, ahead=2 * workers)
            return
        computed: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        for pictures in in_order(pool, load, parts, ahead=workers + 2):
            features = cnn(pictures)  # enqueued, as is the copy behind it
            fetched = torch.empty(features.shape, pin_memory=True)
            fetched.copy_(features, non_blocking=True)
            computed.append((fetched, torch.cuda.Event()))
            computed[-1][1].record()
            if len(computed) > 1:
                yield _arrived(*computed.popleft())
        while computed:
            yield _arrived(*computed.popleft())


@contextmanager
def _workers(count: int) -> Iterator[Executor]:
    """Threads that share the cores among themselves: inside torch, each has one."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _arrived(fetched: Tensor, copied: torch.cuda.Event) -> Tensor:
    copied.synchronize()
    return fetched


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


def _check_finite(features: Tensor, ids: Sequence[str], config: ExtractConfig) -> None:
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not finite.all():
        image_id = ids[int((~finite).nonzero()[0])]
        hint = "; set extract.dtype: float32" if config.dtype == "float16" else ""
        raise InputError(f"the features of {image_id} are not finite{hint}")


def auto_batch(recipe: FeatureRecipe, device: torch.device) -> int:
    """A GPU wants work for all its cores; on a CPU a small batch keeps activations in its cache,
    and below the size from which glibc asks the system for fresh memory every time."""
    if device.type != "cpu":
        return 64
    largest = max(view.preprocessing.size for view in recipe.views)
    return min(4, max(1, round(4 * (224 / largest) ** 2)))


def auto_workers(device: torch.device) -> int:
    """A thread a core; beside a GPU, no more than can feed it."""
    # Of a shared machine's cores, a cluster's job may use some only; macOS cannot say which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) if device.type == "cpu" else min(cores or 1, MAX_DECODERS)


def main(
    images: Annotated[Path, typer.Option(help="The picture archive.")],
    weights: Annotated[Path, typer.Option(help="The frozen CNN's weights.")],
    out: Annotated[Path, typer.Option(help="Where to write the features (HDF5).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Run the frozen CNN over every picture, once."""
    extract(images, weights, out, read(params, ExtractConfig))
