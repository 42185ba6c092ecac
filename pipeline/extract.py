"""Stage 4: the frozen CNN over every picture, once, into one HDF5 file."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from pipeline.cnn.frozen import FrozenCNN, prepare
from pipeline.command import run
from pipeline.config import read
from pipeline.config.extract import ExtractConfig
from pipeline.device import choose_device, choose_precision, make_repeatable
from pipeline.errors import InputError
from pipeline.progress import bar
from pipeline.store.features import create_features
from pipeline.store.pictures import PictureArchive
from pipeline.store.recipe import FeatureRecipe
from pipeline.store.weights import Backbone, read_backbone

log = logging.getLogger(__name__)

# A small batch keeps activations in a CPU's cache; a GPU wants work for all its cores.
AUTO_BATCH = {"cpu": 4, "cuda": 128}
MAX_AUTO_WORKERS = 16


def extract(images: Path, weights: Path, out: Path, config: ExtractConfig) -> None:
    """Write the features of every picture in the archive `images` to `out`.

    Raises:
        InputError: a picture or the weights cannot be used, or a feature is not finite.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    make_repeatable(seed=0)
    backbone = read_backbone(weights)
    recipe = make_recipe(backbone, config)
    cnn = FrozenCNN(backbone, recipe, device, precision)
    with PictureArchive(images) as archive:
        ids = archive.ids
    size = recipe.preprocessing.size
    shape = cnn(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1:]
    batch = AUTO_BATCH[device.type] if config.batch_size == "auto" else config.batch_size
    workers = _auto_workers() if config.workers == "auto" else config.workers

    began = time.monotonic()
    row = 0
    with (
        create_features(out, ids, shape, config.dtype, recipe) as rows,
        bar(label="extract", total=len(ids), unit="picture") as progress,
    ):
        for pictures in _prepared(images, ids, recipe, batch, workers):
            features = cnn(pictures).to(getattr(torch, config.dtype)).cpu()
            _check_finite(features, ids[row : row + len(features)], config)
            rows.write(row, features.numpy())
            row += len(features)
            progress.update(len(features))
    seconds = time.monotonic() - began
    log.info(
        "%d pictures in %.0f s, %.1f a second: %s, %s on %s",
        *(len(ids), seconds, len(ids) / seconds, recipe.label, precision, device),
    )


def make_recipe(backbone: Backbone, config: ExtractConfig) -> FeatureRecipe:
    """How features are made with these weights and params."""
    pre = backbone.preprocessing
    if config.image_size is not None:  # the same margin around the crop, at another size
        resize = round(pre.resize * config.image_size / pre.size)
        pre = replace(pre, resize=resize, size=config.image_size)
    return FeatureRecipe(
        backbone=backbone.name,
        weights=backbone.weights,
        weights_digest=backbone.digest,
        layer=config.layer,
        framing=config.framing,
        preprocessing=pre,
    )


def _prepared(
    images: Path, ids: Sequence[str], recipe: FeatureRecipe, batch: int, workers: int
) -> Iterator[Tensor]:
    """Batches uint8 (B, 3, S, S) in the order of `ids`, decoded ahead by threads.

    Pillow decodes and resizes outside Python's lock, so threads do, and nothing is copied between
    processes. The window ahead is bounded: memory does not grow with the number of pictures.
    """
    own = threading.local()

    def load(image_id: str) -> Tensor:
        if not hasattr(own, "archive"):
            own.archive = PictureArchive(images)  # a handle a worker: seeks must not mix
        return prepare(own.archive.picture(image_id), recipe)

    ahead = 2 * batch + 2 * workers
    waiting: deque[Future[Tensor]] = deque()
    ready: list[Tensor] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for image_id in ids:
                waiting.append(pool.submit(load, image_id))
                if len(waiting) > ahead:
                    ready.append(waiting.popleft().result())
                    if len(ready) == batch:
                        yield torch.stack(ready)
                        ready = []
            ready.extend(future.result() for future in waiting)
            for begin in range(0, len(ready), batch):
                yield torch.stack(ready[begin : begin + batch])
        finally:
            pool.shutdown(cancel_futures=True)


def _check_finite(features: Tensor, ids: Sequence[str], config: ExtractConfig) -> None:
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not finite.all():
        image_id = ids[int((~finite).nonzero()[0])]
        hint = "; set extract.dtype: float32" if config.dtype == "float16" else ""
        raise InputError(f"the features of {image_id} are not finite{hint}")


def _auto_workers() -> int:
    # Of a shared machine's cores, a cluster's job may use some only; macOS cannot say which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_AUTO_WORKERS)


def main(
    images: Annotated[Path, typer.Option(help="The picture archive.")],
    weights: Annotated[Path, typer.Option(help="The frozen CNN's weights.")],
    out: Annotated[Path, typer.Option(help="Where to write the features (HDF5).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Run the frozen CNN over every picture, once."""
    extract(images, weights, out, read(params, ExtractConfig))


if __name__ == "__main__":
    run(main)
