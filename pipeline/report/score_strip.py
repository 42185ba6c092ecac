"""The scores at the top of the page, each with its interval and the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.evaluation.bootstrap import score_intervals
from pipeline.evaluation.metrics_file import Baseline, Metrics, parse_metrics
from pipeline.evaluation.reports import Evaluation, counts_and_means
from pipeline.metrics.registry import METRICS, SCORE_NAMES
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import read_bytes

LARGE = ("cider", "bleu_4", "rouge_l")  # shown as large numbers; the table has all scores
WIDTH, EDGE = 300.0, 6.0


@dataclass(frozen=True)
class Score:
    """A score x100, its 95 % interval, and the baselines' scores in their order."""

    name: str
    title: str
    value: float
    interval: tuple[float, float] | None  # None if all resamples have nearly the same score
    baselines: Sequence[float]
    strip: Markup  # all of them as marks on one line


def read_base(path: Path, metrics: Metrics) -> Baseline:
    """Read another run's metrics as a baseline.

    Raises:
        InputError: the file is missing or damaged, or that run was scored in another way.
    """
    base = parse_metrics(read_bytes(path), path)
    for name, value in metrics.protocol.items():
        if base.protocol[name] != value:
            raise InputError(
                f"{path} has another {name} ({base.protocol[name]}) than this run ({value}); "
                "name a run that was evaluated in the same way, or none"
            )
    return Baseline("base", None, {name: base.numbers[name] for name in SCORE_NAMES})


def compute_score_rows(
    evaluation: Evaluation, baselines: Sequence[Baseline], resamples: int, seed: int
) -> list[Score]:
    """Return every score, BLEU-1 first."""
    intervals = score_intervals(*counts_and_means(evaluation.scores), resamples, seed)
    rows = []
    for name, (low, high) in zip(SCORE_NAMES, intervals, strict=True):
        title, value = METRICS[name].title, evaluation.metrics.numbers[name]
        interval = (low, high) if f"{low:.1f}" != f"{high:.1f}" else None  # as the page shows it
        marks = {baseline.name: baseline.scores[name] for baseline in baselines}
        strip = _strip(title, value, interval, marks)
        rows.append(Score(name, title, value, interval, list(marks.values()), strip))
    return rows


def _strip(
    title: str, value: float, interval: tuple[float, float] | None, marks: dict[str, float]
) -> Markup:
    """Draw a scale from 0 with the interval, the score, and a tick for each baseline.

    The baselines' names alternate below and above the line, so that close ones do not collide.
    """
    low, high = interval or (value, value)
    top = 1.06 * max(high, value, *marks.values(), 1e-9)

    def x(score: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * min(score, top) / top

    spread = f", from {low:.1f} to {high:.1f}" if interval else ""
    others = ", ".join(f"{name} {score:.1f}" for name, score in marks.items())
    label = f"{title} on a line from 0: model {value:.1f}{spread}; {others}"
    bar = Markup('<rect class="interval" x="{:.1f}" y="21" width="{:.1f}" height="12" rx="6"/>')
    bar = bar.format(x(low), max(x(high) - x(low), 12.0)) if interval else Markup("")
    parts = [
        Markup(
            '<svg class="strip" viewBox="0 0 {:.0f} 54" role="img" aria-label="{}">'
            '<line class="axis" x1="{:.0f}" x2="{:.0f}" y1="27" y2="27"/>'
            '{}<circle class="score" cx="{:.1f}" cy="27" r="5"/>'
        ).format(WIDTH, label, EDGE, WIDTH - EDGE, bar, x(value))
    ]
    for i, (name, score) in enumerate(marks.items()):
        at = x(score)
        anchor = "start" if at < WIDTH * 0.2 else "end" if at > WIDTH * 0.8 else "middle"
        text_x = {"start": at - 2, "middle": at, "end": at + 2}[anchor]
        parts.append(
            Markup(
                '<line class="baseline" x1="{0:.1f}" x2="{0:.1f}" y1="18" y2="36"/>'
                '<text class="tick" x="{1:.1f}" y="{2}" text-anchor="{3}">{4}</text>'
            ).format(at, text_x, 12 if i % 2 else 50, anchor, f"{name} {score:.1f}")
        )
    return Markup("").join([*parts, Markup("</svg>")])
