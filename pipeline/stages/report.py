"""Stage 9: one run as one page: scores, curves, every image with its captions, and its origin."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import Config, read
from pipeline.config.backbone import BackboneConfig
from pipeline.config.captions import CaptionsConfig
from pipeline.config.download import DownloadConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.extract import ExtractConfig
from pipeline.config.report import ReportConfig
from pipeline.config.scst import ScstConfig
from pipeline.config.train import TrainConfig
from pipeline.config.vocab import VocabConfig
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
PARAM_GROUPS: tuple[type[Config], ...] = (
    *(DownloadConfig, CaptionsConfig, BackboneConfig, ExtractConfig, VocabConfig),
    *(TrainConfig, ScstConfig, EvaluateConfig, ReportConfig),
)


@dataclass(frozen=True)
class Inputs:
    """Where everything is that the page shows."""

    images: Path
    models: Sequence[Path]
    captions: Path
    references: Path
    scores: Path
    lengths: Path
    metrics: Path
    history: Path
    scst: Path
    base: Path | None = None  # the metrics of a run to set this one beside


def report(inputs: Inputs, out: Path, params: Sequence[Config], config: ReportConfig) -> None:
    """Write the page.

    Args:
        params: every group of the params file, to be shown.

    Raises:
        InputError: an input is absent or damaged, the reports are not of one evaluation, or a
            image cannot be read.
    """
    evaluation = read_evaluation(inputs.captions, inputs.references, inputs.scores, inputs.metrics)
    if inputs.base is not None:
        beside = [*evaluation.yardsticks, read_base(inputs.base, evaluation)]
        evaluation = replace(evaluation, yardsticks=beside)
    train = next(one for one in params if isinstance(one, TrainConfig))
    learning = training_figures(inputs.history, train.select_by)
    self_critical = self_critical_figure(inputs.scst)
    shown = pick_evenly(evaluation.images, config.images)
    common = Counter(one.caption for one in evaluation.images).most_common(COMMON)
    scores = scores_of(evaluation, config.resamples, config.seed)
    distributions = [length_figure(inputs.lengths), *score_figures(evaluation.images)]
    small = thumbnails(
        inputs.images, [one.image_id for one in shown], config.thumbnail, config.quality
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
        digests=digests(inputs.models),
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
    images: Annotated[Path, typer.Option(help="The image archive.")],
    model: Annotated[list[Path], typer.Option(help="The model (or models) that was evaluated.")],
    captions: Annotated[Path, typer.Option(help="Its captions.")],
    references: Annotated[Path, typer.Option(help="Their references.")],
    scores: Annotated[Path, typer.Option(help="The scores by image.")],
    lengths: Annotated[Path, typer.Option(help="The caption lengths.")],
    metrics: Annotated[Path, typer.Option(help="The metrics.")],
    history: Annotated[Path, typer.Option(help="The history of training.")],
    scst: Annotated[Path, typer.Option(help="The history of self-critical training.")],
    out: Annotated[Path, typer.Option(help="Where to write the page (HTML).")],
    base: Annotated[
        Path | None, typer.Option(help="The metrics of another run, to set this one beside.")
    ] = None,
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Show the run as one page: scores, curves, images, origin."""
    groups = [read(params, group) for group in PARAM_GROUPS]
    report(
        Inputs(images, model, captions, references, scores, lengths, metrics, history, scst, base),
        out,
        groups,
        read(params, ReportConfig),
    )
