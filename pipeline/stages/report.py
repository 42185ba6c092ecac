"""Stage 11: a run as one page: scores, curves, every image with its captions, and provenance."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import (
    GROUPS,
    CompareConfig,
    DistributedConfig,
    ReportConfig,
    TrainConfig,
)
from pipeline.config.types import Config
from pipeline.evaluation.reports import ReportFiles, read_evaluation
from pipeline.metrics.registry import DIVERSITY_NAMES, METRICS
from pipeline.report.figures import (
    length_figure,
    reliability_figure,
    score_figures,
    self_critical_figure,
    training_figures,
)
from pipeline.report.gallery import captioned_images, images_json, pick_evenly
from pipeline.report.provenance import digests, shown_params, versions
from pipeline.report.render import render_page
from pipeline.report.score_strip import LARGE, compute_score_rows, read_base
from pipeline.report.thumbnails import thumbnails
from pipeline.runtime import options
from pipeline.runtime.errors import pluralize
from pipeline.runtime.files import atomic_write

log = logging.getLogger(__name__)

MOST_COMMON = 5  # repeated captions that the page lists

# The page shows every param of a stage, so this stage depends on all of their groups.
PARAM_GROUPS = [
    config for config in GROUPS.values() if config not in (CompareConfig, DistributedConfig)
]


def report(
    images: Path,
    models: Sequence[Path],
    reports: ReportFiles,
    out: Path,
    params: Sequence[Config],
    config: ReportConfig,
    base: Path | None = None,
) -> None:
    """Write the page.

    Args:
        models: the evaluated ones.
        params: every group of the params file.
        base: the metrics of a run to show beside this one.

    Raises:
        InputError: an input is missing or damaged, the reports do not belong together, or an
            image cannot be read.
    """
    evaluation = read_evaluation(*reports.evaluation)
    metrics = evaluation.metrics
    baselines = [*metrics.baselines, *([read_base(base, metrics)] if base else [])]
    train = next(group for group in params if isinstance(group, TrainConfig))
    curves = training_figures(reports.history, train.select_by)
    self_critical = self_critical_figure(reports.scst)
    all_images = captioned_images(evaluation)
    shown = pick_evenly(all_images, config.max_images)
    common = Counter(evaluation.captions.values()).most_common(MOST_COMMON)
    confidence = [reliability_figure(all_images, metrics.confidence)] if metrics.confidence else []
    scores = compute_score_rows(evaluation, baselines, config.resamples, config.seed)
    ids = [image.image_id for image in shown]
    small = thumbnails(images, ids, config.thumbnail_size, config.jpeg_quality)
    page = render_page(
        images_json(shown, small),
        metrics=metrics,
        baselines=baselines,
        scores=scores,
        large=[next(score for score in scores if score.name == name) for name in LARGE],
        curves=[*curves, *([self_critical] if self_critical else [])],
        self_critical=self_critical is not None,
        diversity=[
            (metric.label, metric.format.format(metrics.numbers[metric.key]))
            for metric in (METRICS[name] for name in DIVERSITY_NAMES)
        ],
        distributions=[length_figure(reports.lengths), *score_figures(all_images), *confidence],
        has_confidence=metrics.confidence is not None,
        common=[(caption, count) for caption, count in common if count > 1],
        shown=len(shown),
        total=len(all_images),
        decoder=train.decoder,
        config=config,
        params=shown_params(params),
        digests=digests(models),
        versions=versions(),
    )
    with atomic_write(out) as scratch:
        scratch.write_bytes(page)
    log.info("%s: %s, %.1f MB", out, pluralize(len(shown), "image"), len(page) / 1e6)


def main(
    images: options.Images = Path("data/images.zip"),
    model: Annotated[list[Path], typer.Option(help="The evaluated model, or models.")] = [  # noqa: B006
        Path("models/captioner.safetensors")
    ],
    reports_dir: Annotated[
        Path, typer.Option(help="The folder of the reports and histories.")
    ] = Path("reports"),
    out: Annotated[Path, typer.Option(help="The page to write (HTML).")] = Path(
        "reports/report.html"
    ),
    base: Annotated[
        Path | None, typer.Option(help="The metrics of another run, to show beside this one.")
    ] = None,
    params: options.Params = Path("params.yaml"),
) -> None:
    """Write the run's page: scores, curves, images and provenance."""
    groups = [load_params(params, group) for group in PARAM_GROUPS]
    config = load_params(params, ReportConfig)
    report(images, model, ReportFiles.in_folder(reports_dir), out, groups, config, base)
