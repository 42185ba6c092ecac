"""Stage 9: one run as one page: scores, curves, every image with its captions, and its origin."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.load import load_params
from pipeline.config.schema import GROUPS, CompareConfig, Config, ReportConfig, TrainConfig
from pipeline.evaluation.reports import ReportFiles
from pipeline.report.evaluation import CaptionedImage, read_base, read_evaluation
from pipeline.report.figures import (
    length_figure,
    score_figures,
    self_critical_figure,
    training_figures,
)
from pipeline.report.provenance import digests, shown_params, versions
from pipeline.report.render import images_json, page_of
from pipeline.report.score_strip import LARGE, scores_of
from pipeline.report.thumbnails import thumbnails
from pipeline.runtime.errors import counted
from pipeline.runtime.files import atomic_write

log = logging.getLogger(__name__)

COMMON = 5  # captions said most often that are shown

# The page shows every param, so this stage depends on every group.
PARAM_GROUPS = [config for config in GROUPS.values() if config is not CompareConfig]


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
        models: those that were evaluated.
        params: every group of the params file.
        base: the metrics of a run to show beside this one.

    Raises:
        InputError: an input is missing or damaged, the reports are not of one evaluation, or an
            image cannot be read.
    """
    evaluation = read_evaluation(
        reports.captions, reports.references, reports.scores, reports.metrics
    )
    if base is not None:
        beside = [*evaluation.baselines, read_base(base, evaluation)]
        evaluation = replace(evaluation, baselines=beside)
    train = next(one for one in params if isinstance(one, TrainConfig))
    learning = training_figures(reports.history, train.select_by)
    self_critical = self_critical_figure(reports.scst)
    shown = pick_evenly(evaluation.images, config.max_images)
    common = Counter(one.caption for one in evaluation.images).most_common(COMMON)
    scores = scores_of(evaluation, config.resamples, config.seed)
    distributions = [length_figure(reports.lengths), *score_figures(evaluation.images)]
    small = thumbnails(
        images, [one.image_id for one in shown], config.thumbnail_size, config.jpeg_quality
    )
    page = page_of(
        images_json(shown, small),
        evaluation=evaluation,
        scores=scores,
        large=[next(one for one in scores if one.name == name) for name in LARGE],
        learning=[*learning, *([self_critical] if self_critical else [])],
        self_critical=self_critical is not None,
        distributions=distributions,
        common=[(caption, count) for caption, count in common if count > 1],
        shown=len(shown),
        decoder=train.decoder,
        config=config,
        params=shown_params(params),
        digests=digests(models),
        versions=versions(),
    )
    with atomic_write(out) as scratch:
        scratch.write_bytes(page)
    log.info("%s: %s, %.1f MB", out, counted(len(shown), "image"), len(page) / 1e6)


def pick_evenly(images: Sequence[CaptionedImage], most: int) -> list[CaptionedImage]:
    """All of them, or `most` at even ranks of CIDEr, the best and the worst among them; in the
    order given."""
    if len(images) <= most:
        return list(images)
    ranked = sorted(range(len(images)), key=lambda i: images[i].cider)
    last = len(images) - 1
    kept = {ranked[round(i * last / max(most - 1, 1))] for i in range(most)}
    return [images[i] for i in sorted(kept)]


def main(
    images: Annotated[Path, typer.Option(help="The image archive.")] = Path("data/images.zip"),
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
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Write the run's page: scores, curves, images, provenance."""
    groups = [load_params(params, group) for group in PARAM_GROUPS]
    config = load_params(params, ReportConfig)
    report(images, model, ReportFiles(reports_dir), out, groups, config, base)
