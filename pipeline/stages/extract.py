"""Stage 4: the frozen CNN over every image, once, into one HDF5 file."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipeline.backbones.weights import BackboneWeights, read_backbones
from pipeline.config.load import load_params
from pipeline.config.schema import ExtractConfig
from pipeline.extraction import nvjpeg
from pipeline.extraction.feature_extractor import FeatureExtractor
from pipeline.extraction.feature_writer import resume_features
from pipeline.extraction.precision import keeps_direction, select_dtype
from pipeline.extraction.preprocess import PreprocessedViews, collate
from pipeline.extraction.stream import Rows, iter_features, load
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.images.archive import ImageArchive
from pipeline.runtime.checkpoint import Checkpoint, run_fingerprint
from pipeline.runtime.device import fast_dtypes, resolve_device, seed_everything
from pipeline.runtime.errors import InputError, counted
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

MAX_DECODE_THREADS = 16
NUM_PROBE_IMAGES = 64  # images that tell which precision will do


def extract(images: Path, backbone: Path, out: Path, config: ExtractConfig) -> None:
    """Write the features of every image in the archive `images` to `out`.

    A run that was killed goes on where it stood, and ends with the same bytes; where images have
    changed since, before the first of them.

    Raises:
        InputError: an image or the weights cannot be used, or a feature is not finite.
    """
    device = resolve_device(config.device)
    seed_everything(0, config.deterministic)
    backbones = read_backbones(backbone)
    recipe = make_recipe(backbones, config)
    batch = default_batch_size(recipe, device) if config.batch_size == "auto" else config.batch_size
    with ImageArchive(images) as archive:
        ids, contents = archive.ids, archive.contents
        cnn = _frozen_cnn(backbones, recipe, device, config.precision, batch, archive)
        recipe = cnn.recipe = _with_jpeg_decoder(cnn, config.jpeg_decoder, batch, archive)
        shape = cnn.feature_shape
        workers = (
            default_num_workers(device) if config.num_workers == "auto" else config.num_workers
        )

        # In another precision, of other batches, or by another decoder of images, a feature may
        # differ in its last bits.
        versions = [version(name) for name in ("pillow", "torchvision")]
        fingerprint = run_fingerprint(
            "extract",
            [config.model_dump(), str(cnn.precision), recipe.jpeg_decoder, batch, versions],
            [backbone],
            device.type,
        )
        made_of = (ids, shape, config.dtype, recipe)
        with (
            Checkpoint(out, fingerprint, config.checkpoint_seconds) as checkpoint,
            resume_features(out, *made_of, checkpoint, contents, batch) as rows,
        ):
            began, left = time.monotonic(), ids[rows.done :]
            with progress_bar(
                label="extract", total=len(ids), unit="image", initial=rows.done
            ) as progress:
                dtype = getattr(torch, config.dtype)
                for made in iter_features(archive, left, cnn, batch, workers, dtype):
                    _check_finite(made, ids[rows.done : rows.done + len(made.values)], config)
                    rows.append(made.values, made.checksums)
                    progress.update(len(made.values))
                    if checkpoint.is_due():
                        rows.save(checkpoint)
    if not left:
        return  # it was there already
    seconds = time.monotonic() - began
    log.info(
        "%s in %.0f s, %.1f a second: %s, %s on %s",
        *(counted(len(left), "image"), seconds, len(left) / seconds),
        *(recipe.label, cnn.precision, device),
    )


def _frozen_cnn(
    backbones: Sequence[BackboneWeights],
    recipe: FeatureRecipe,
    device: torch.device,
    precision: str,
    batch: int,
    archive: ImageArchive,
) -> FeatureExtractor:
    """The CNN in the precision that the params name, or that a probe of the archive chooses."""

    def build(dtype: torch.dtype) -> FeatureExtractor:
        return FeatureExtractor(backbones, recipe, device, dtype, batch)

    def sample() -> list[PreprocessedViews]:
        return load(archive, archive.ids[:NUM_PROBE_IMAGES], recipe)

    if precision != "auto":
        return build(getattr(torch, precision))
    return select_dtype(build, fast_dtypes(device), sample, batch)


def _with_jpeg_decoder(
    cnn: FeatureExtractor, wanted: str, batch: int, archive: ImageArchive
) -> FeatureRecipe:
    """The recipe with the decoder that the params name, or with nvJPEG where there is one and a
    probe of the archive finds the features unharmed.

    Raises:
        InputError: nvJPEG is asked for and there is none.
    """
    if wanted == "pillow" or (wanted == "auto" and cnn.device.type == "cpu"):
        return cnn.recipe
    there = nvjpeg.works_on(cnn.device)
    if wanted == "nvjpeg" and not there:
        raise InputError(
            "params ask for extract.jpeg_decoder 'nvjpeg', which this machine's torchvision "
            "does not have; set it to auto"
        )
    if there and wanted == "auto":
        ids = archive.ids[:NUM_PROBE_IMAGES]
        contents, names = [archive.content(one) for one in ids], [str(one) for one in ids]
        usual = collate(load(archive, ids, cnn.recipe))
        there = keeps_direction(
            cnn, nvjpeg.prepare_on_gpu(contents, names, cnn.recipe, cnn.device), usual, batch
        )
    return replace(cnn.recipe, jpeg_decoder="nvjpeg") if there else cnn.recipe


def make_recipe(backbones: Sequence[BackboneWeights], config: ExtractConfig) -> FeatureRecipe:
    """How features are made with these weights and params: every backbone sees every size."""
    return FeatureRecipe(
        layer=config.layer,
        crop_mode=config.crop_mode,
        hflip=config.hflip,
        grid_size=config.grid_size,
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


def _check_finite(made: Rows, ids: Sequence[str], config: ExtractConfig) -> None:
    if not made.finite.all():
        image_id = ids[int((~made.finite).nonzero()[0][0])]
        hint = "; set extract.dtype: float32" if config.dtype == "float16" else ""
        raise InputError(f"the features of {image_id} are not finite{hint}")


def default_batch_size(recipe: FeatureRecipe, device: torch.device) -> int:
    """A GPU wants work for all its cores; on a CPU a small batch keeps activations in its cache,
    and below the size from which glibc asks the system for fresh memory every time."""
    if device.type != "cpu":
        return 128
    largest = max(view.preprocessing.size for view in recipe.views)
    return min(4, max(1, round(4 * (224 / largest) ** 2)))


def default_num_workers(device: torch.device) -> int:
    """A thread a core; beside a GPU, no more than can feed it."""
    # Of a shared machine's cores, a cluster's job may use some only; macOS cannot say which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) if device.type == "cpu" else min(cores or 1, MAX_DECODE_THREADS)


def main(
    images: Annotated[Path, typer.Option(help="The image archive.")] = Path("data/images.zip"),
    backbone: Annotated[Path, typer.Option(help="The frozen CNN's weights.")] = Path(
        "models/backbone.safetensors"
    ),
    out: Annotated[Path, typer.Option(help="The feature cache to write (HDF5).")] = Path(
        "features/features.h5"
    ),
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Extract the frozen CNN's features of every image, once."""
    extract(images, backbone, out, load_params(params, ExtractConfig))
