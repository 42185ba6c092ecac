"""Stage 4: extract the frozen CNN's features of every image, once, into one HDF5 file."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, ExtractConfig
from pipeline.extraction.feature_writer import resume_features
from pipeline.extraction.parts import parse_part, part_rows
from pipeline.extraction.plan import ExtractionPlan, Extractor
from pipeline.extraction.worker import ExtractInputs, ExtractionWorker
from pipeline.features.cache_file import CacheSpec
from pipeline.features.shards import is_shard_folder
from pipeline.images.archive import ImageArchive
from pipeline.runtime import options
from pipeline.runtime.checkpoint import Checkpoint, run_fingerprint
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

FEATURES = Path("features/features.h5")


def extract(
    images: Path,
    unreadable: Path,
    backbone: Path,
    out: Path,
    config: ExtractConfig,
    distributed: DistributedConfig | None = None,
    part: tuple[int, int] | None = None,
) -> None:
    """Write the features of every image in the archive `images`, but the unreadable ones, to `out`.

    `out` is a file or, with `shard_rows`, a folder of them.

    A killed run resumes, with the same bytes in the end. If images have changed since, it resumes
    before the first of them.

    Args:
        distributed: who extracts, which does not change a byte; None: this process.
        part: (K, N) writes only part K of N, for `merge`.

    Raises:
        InputError: an image or the weights cannot be used, or a feature is not finite.
    """
    inputs = ExtractInputs(images, unreadable, backbone)
    with (
        inputs.open_archive() as archive,
        _open_extractor(inputs, archive, config, distributed) as extractor,
    ):
        plan, image_prints = extractor.plan, archive.fingerprints
        prints = [f"{image} {k}" for k in range(1 + config.augmentations) for image in image_prints]
        fingerprint = run_fingerprint(
            "extract", [config.model_dump(), asdict(plan), part], [backbone], plan.device
        )
        spec = _spec(archive.ids, plan, config, part)
        begin, end = spec.rows.start, spec.rows.stop
        settings = (fingerprint, config.checkpoint_seconds, is_shard_folder(out))
        with (
            Checkpoint(out, *settings) as checkpoint,
            resume_features(out, spec, checkpoint, prints[begin:end], plan.batch_size) as writer,
        ):
            began, resumed = time.monotonic(), writer.rows_written
            with progress_bar(
                label="extract", total=end - begin, unit="image", initial=resumed
            ) as progress:
                for rows in extractor.extract(begin + resumed, end, writer.files):
                    writer.append_checked(rows.values, rows.checksums)
                    progress.update(len(rows.checksums))
                    if checkpoint.is_due():
                        writer.save(checkpoint)
    if number := len(spec.rows) - resumed:  # else an earlier run had finished
        seconds = time.monotonic() - began
        log.info(
            "%s in %.0f s, %.1f images/s: %s, %s on %s",
            pluralize(number, "image"),
            seconds,
            number / seconds,
            plan.recipe.label,
            plan.precision,
            plan.device,
        )


def _spec(
    ids: Sequence[str], plan: ExtractionPlan, config: ExtractConfig, part: tuple[int, int] | None
) -> CacheSpec:
    values = (plan.feature_shape, config.dtype, plan.recipe, config.augmentations)
    spec = CacheSpec(ids, *values, config.shard_rows)
    if part is None:
        return spec
    return replace(spec, part=part_rows(part, spec.num_rows, plan.batch_size))


@contextmanager
def _open_extractor(
    inputs: ExtractInputs,
    archive: ImageArchive,
    config: ExtractConfig,
    distributed: DistributedConfig | None,
) -> Iterator[Extractor]:
    if distributed is None or distributed.engine == "local":
        yield ExtractionWorker(archive, inputs.backbone, config)
        return
    try:
        from pipeline.extraction.ray_extractor import RayExtractor
    except ModuleNotFoundError:
        raise InputError(
            "distributed.engine is ray, which is not installed; run: pip install ray"
        ) from None
    with RayExtractor(inputs, config, distributed) as extractor:
        yield extractor


def main(
    images: options.Images = Path("data/images.zip"),
    unreadable: options.Unreadable = Path("data/unreadable_images.csv"),
    backbone: options.Backbone = Path("models/backbone.safetensors"),
    out: Annotated[Path, typer.Option(help="The feature cache to write (HDF5).")] = FEATURES,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Extract only part K of N, to a file for `merge` (docs/distributed.md).",
        ),
    ] = None,
    params: options.Params = Path("params.yaml"),
) -> None:
    """Extract the frozen CNN's features of every image, once."""
    config, distributed = load_params(params, ExtractConfig), load_params(params, DistributedConfig)
    chosen = parse_part(part) if part else None
    if chosen and out == FEATURES:  # parts must not take the place of the whole
        out = FEATURES.parent / "parts" / f"{chosen[0]:05d}-of-{chosen[1]:05d}.h5"
    extract(images, unreadable, backbone, out, config, distributed, chosen)
