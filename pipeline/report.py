"""Stage 9: one run as one page: scores, curves, every picture with its captions, and its origin."""

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
from pipeline.errors import counted
from pipeline.page.evaluation import Picture, read_base, read_evaluation
from pipeline.page.figures import (
    length_figure,
    score_figures,
    self_critical_figure,
    training_figures,
)
from pipeline.page.headline import LARGE, scores_of
from pipeline.page.origin import digests, shown_params, versions
from pipeline.page.render import page_of, pictures_json
from pipeline.page.thumbnails import thumbnails
from pipeline.store.files import atomic

log = logging.getLogger(__name__)

COMMON = 5  # captions said most often that are shown

# The page shows every param, so this stage depends on every group.
SHOWN: tuple[type[Config], ...] = (
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
            picture cannot be read.
    """
    evaluation = read_evaluation(inputs.captions, inputs.references, inputs.scores, inputs.metrics)
    if inputs.base is not None:
        beside = [*evaluation.yardsticks, read_base(inputs.base, evaluation)]
        evaluation = replace(evaluation, yardsticks=beside)
    train = next(one for one in params if isinstance(one, TrainConfig))
    learning = training_figures(inputs.history, train.select_by)
    self_critical = self_critical_figure(inputs.scst)
    shown = spread(evaluation.pictures, config.pictures)
    common = Counter(one.caption for one in evaluation.pictures).most_common(COMMON)
    scores = scores_of(evaluation, config.resamples, config.seed)
    spreads = [length_figure(inputs.lengths), *score_figures(evaluation.pictures)]
    small = thumbnails(
        inputs.images, [one.image_id for one in shown], config.thumbnail, config.quality
    )
    page = page_of(
        pictures_json(shown, small),
        evaluation=evaluation,
        scores=scores,
        large=[next(one for one in scores if one.name == name) for name in LARGE],
        learning=[*learning, *([self_critical] if self_critical else [])],
        self_critical=self_critical is not None,
        spreads=spreads,
        common=[(caption, count) for caption, count in common if count > 1],
        shown=len(shown),
        decoder=train.decoder,
        config=config,
        params=shown_params(params),
        digests=digests(inputs.models),
        versions=versions(),
    )
    with atomic(out) as scratch:
        scratch.write_bytes(page)
    log.info("%s: %s, %.1f MB", out, counted(len(shown), "picture"), len(page) / 1e6)


def spread(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """All of them, or `most` at even ranks of CIDEr, the best and the worst among them; in the
    order given."""
    if len(pictures) <= most:
        return list(pictures)
    ranked = sorted(range(len(pictures)), key=lambda i: pictures[i].cider)
    last = len(pictures) - 1
    kept = {ranked[round(i * last / max(most - 1, 1))] for i in range(most)}
    return [pictures[i] for i in sorted(kept)]


def main(
    images: Annotated[Path, typer.Option(help="The picture archive.")],
    model: Annotated[list[Path], typer.Option(help="The model (or models) that was evaluated.")],
    captions: Annotated[Path, typer.Option(help="Its captions.")],
    references: Annotated[Path, typer.Option(help="Their references.")],
    scores: Annotated[Path, typer.Option(help="The scores by picture.")],
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
    """Show the run as one page: scores, curves, pictures, origin."""
    groups = [read(params, group) for group in SHOWN]
    report(
        Inputs(images, model, captions, references, scores, lengths, metrics, history, scst, base),
        out,
        groups,
        read(params, ReportConfig),
    )
