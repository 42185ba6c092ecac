"""Stage 4: extract the frozen CNN's features of every image, once, into one HDF5 file."""

import logging
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
from pipeline.extraction.feature_extractor import FeatureExtractor, default_batch_size
from pipeline.extraction.feature_writer import resume_features
from pipeline.extraction.precision import pooled_features, same_direction, select_dtype
from pipeline.extraction.preprocess import Sample, collate
from pipeline.extraction.stream import Rows, default_num_workers, iter_features, load
from pipeline.features.feature_cache import CacheSpec
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.images.archive import ImageArchive
from pipeline.images.unreadable import read_unreadable
from pipeline.runtime import options
from pipeline.runtime.checkpoint import Checkpoint, run_fingerprint
from pipeline.runtime.device import fast_dtypes, resolve_device, seed_everything
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

NUM_PROBE_IMAGES = 64  # for the choice of precision and JPEG decoder


def extract(
    images: Path, unreadable: Path, backbone: Path, out: Path, config: ExtractConfig
) -> None:
    """Write the features of every image in the archive `images`, but the unreadable ones, to `out`.

    A killed run resumes, with the same bytes in the end. If images have changed since, it resumes
    before the first of them.

    Raises:
        InputError: an image or the weights cannot be used, or a feature is not finite.
    """
    device = resolve_device(config.device)
    seed_everything(0, config.deterministic)
    backbones = read_backbones(backbone)
    recipe = make_recipe(backbones, config)
    batch = default_batch_size(recipe, device) if config.batch_size == "auto" else config.batch_size
    workers = default_num_workers(device) if config.num_workers == "auto" else config.num_workers
    with ImageArchive(images, read_unreadable(unreadable)) as archive:
        ids = archive.ids
        cnn = _build_extractor(backbones, recipe, device, config.precision, batch, archive)
        recipe = cnn.recipe = _choose_jpeg_decoder(cnn, config.jpeg_decoder, batch, archive)
        # Precision, batch size and JPEG decoder may change a feature's last bits.
        versions = [version(name) for name in ("pillow", "torchvision")]
        fingerprint = run_fingerprint(
            "extract",
            [config.model_dump(), str(cnn.precision), recipe.jpeg_decoder, batch, versions],
            [backbone],
            device.type,
        )
        spec = CacheSpec(ids, cnn.feature_shape, config.dtype, recipe, config.augmentations)
        numbers = range(1 + config.augmentations)
        samples = [Sample(image_id, number) for number in numbers for image_id in ids]
        prints = [f"{print_} {number}" for number in numbers for print_ in archive.fingerprints]
        with (
            Checkpoint(out, fingerprint, config.checkpoint_seconds) as checkpoint,
            resume_features(out, spec, checkpoint, prints, batch) as writer,
        ):
            began, remaining = time.monotonic(), samples[writer.rows_written :]
            with progress_bar(
                label="extract", total=len(samples), unit="image", initial=writer.rows_written
            ) as progress:
                dtype = getattr(torch, config.dtype)
                for rows in iter_features(archive, remaining, cnn, batch, workers, dtype):
                    begin = writer.rows_written
                    _check_finite(rows, samples[begin : begin + len(rows.values)], config)
                    writer.append(rows.values, rows.checksums)
                    progress.update(len(rows.values))
                    if checkpoint.is_due():
                        writer.save(checkpoint)
    if remaining:  # else an earlier run had finished
        seconds, number = time.monotonic() - began, len(remaining)
        log.info(
            "%s in %.0f s, %.1f images/s: %s, %s on %s",
            pluralize(number, "image"),
            seconds,
            number / seconds,
            recipe.label,
            cnn.precision,
            device,
        )


def _build_extractor(
    backbones: Sequence[BackboneWeights],
    recipe: FeatureRecipe,
    device: torch.device,
    precision: str,
    batch: int,
    archive: ImageArchive,
) -> FeatureExtractor:
    """Build the CNN in the precision of the params; for `auto`, choose it on some images."""

    def build(dtype: torch.dtype) -> FeatureExtractor:
        return FeatureExtractor(backbones, recipe, device, dtype, batch)

    if precision != "auto":
        return build(getattr(torch, precision))
    candidates = fast_dtypes(device)
    if not candidates:
        return build(torch.float32)
    sample = collate(load(archive, _probe(archive), recipe))
    return select_dtype(build, candidates, sample, batch)


def _choose_jpeg_decoder(
    cnn: FeatureExtractor, choice: str, batch: int, archive: ImageArchive
) -> FeatureRecipe:
    """Return the recipe with the params' JPEG decoder; `auto` tries nvJPEG on some images."""
    if choice == "pillow" or (choice == "auto" and cnn.device.type == "cpu"):
        return cnn.recipe
    usable = nvjpeg.is_available(cnn.device)
    if choice == "nvjpeg" and not usable:
        raise InputError(
            "extract.jpeg_decoder is 'nvjpeg', which this machine's torchvision does not have; "
            "set it to auto"
        )
    if usable and choice == "auto":
        probe = _probe(archive)
        ids = [sample.image_id for sample in probe]
        contents = [archive.read(image_id) for image_id in ids]
        on_gpu = nvjpeg.preprocess_on_gpu(contents, ids, cnn.recipe, cnn.device)
        on_cpu = collate(load(archive, probe, cnn.recipe))
        features = [pooled_features(cnn, images, batch) for images in (on_gpu, on_cpu)]
        usable = same_direction(*features)
    return replace(cnn.recipe, jpeg_decoder="nvjpeg") if usable else cnn.recipe


def _probe(archive: ImageArchive) -> list[Sample]:
    return [Sample(image_id) for image_id in archive.ids[:NUM_PROBE_IMAGES]]


def make_recipe(backbones: Sequence[BackboneWeights], config: ExtractConfig) -> FeatureRecipe:
    """Return the recipe of these weights and params: one view per backbone and image size."""
    return FeatureRecipe(
        layer=config.layer,
        pooling=config.pooling,
        crop_mode=config.crop_mode,
        hflip=config.hflip,
        grid_size=config.grid_size,
        views=tuple(
            View(
                backbone=backbone.name,
                weights=backbone.weights,
                weights_digest=backbone.digest,
                preprocessing=_rescale(backbone.preprocessing, size),
            )
            for backbone in backbones
            for size in config.image_size
        ),
    )


def _rescale(pre: Preprocessing, size: int | None) -> Preprocessing:
    """Change the crop's size; keep its proportion to the resized image."""
    if size is None:
        return pre
    return replace(pre, resize=round(pre.resize * size / pre.size), size=size)


def _check_finite(rows: Rows, samples: Sequence[Sample], config: ExtractConfig) -> None:
    if not rows.finite.all():
        image_id = samples[int((~rows.finite).nonzero()[0][0])].image_id
        hint = "; set extract.dtype: float32" if config.dtype == "float16" else ""
        raise InputError(f"the features of {image_id} are not finite{hint}")


def main(
    images: options.Images = Path("data/images.zip"),
    unreadable: options.Unreadable = Path("data/unreadable_images.csv"),
    backbone: options.Backbone = Path("models/backbone.safetensors"),
    out: Annotated[Path, typer.Option(help="The feature cache to write (HDF5).")] = Path(
        "features/features.h5"
    ),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Extract the frozen CNN's features of every image, once."""
    extract(images, unreadable, backbone, out, load_params(params, ExtractConfig))
