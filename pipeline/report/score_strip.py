"""The scores as the top of the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.evaluation.bootstrap import score_intervals
from pipeline.metrics.registry import METRICS, SCORE_NAMES
from pipeline.report.evaluation import Evaluation

LARGE = ("cider", "bleu_4", "rouge_l")  # as big numbers; all are in the table
WIDTH, EDGE = 300.0, 6.0


@dataclass(frozen=True)
class Score:
    """One score x100, its 95 % interval, and the yardsticks', in their order."""

    name: str
    title: str
    value: float
    interval: tuple[float, float] | None  # None where all resamples score as good as the same
    beside: Sequence[float]
    strip: Markup  # all of them on one line


def scores_of(evaluation: Evaluation, resamples: int, seed: int) -> list[Score]:
    """Every score, BLEU-1 first."""
    intervals = score_intervals(evaluation.counts, evaluation.means, resamples, seed)
    scores = []
    for name, ends in zip(SCORE_NAMES, intervals, strict=True):
        value = evaluation.scores[name]
        low, high = (f"{end:.1f}" for end in ends)  # as it is shown
        interval = ends if low != high else None
        marks = {one.name: one.scores[name] for one in evaluation.baselines}
        scores.append(
            Score(
                *(name, METRICS[name].title, value, interval),
                beside=list(marks.values()),
                strip=_strip(METRICS[name].title, value, interval, marks),
            )
        )
    return scores


def _strip(
    title: str, value: float, interval: tuple[float, float] | None, marks: dict[str, float]
) -> Markup:
    """A scale from 0 with the interval, the score, and a tick for each yardstick.

    The yardsticks' names stand by turns below and above the line, so that near ones do not collide.
    """
    low, high = interval or (value, value)
    top = 1.06 * max(high, value, *marks.values(), 1e-9)

    def x(score: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * min(score, top) / top

    spread = f", from {low:.1f} to {high:.1f}" if interval else ""
    said = ", ".join(f"{name} {score:.1f}" for name, score in marks.items())
    bar = Markup('<rect class="interval" x="{:.1f}" y="21" width="{:.1f}" height="12" rx="6"/>')
    bar = bar.format(x(low), max(x(high) - x(low), 12.0)) if interval else Markup("")
    parts = [
        Markup(
            '<svg class="strip" viewBox="0 0 {w:.0f} 54" role="img" aria-label="{}">'
            '<line class="axis" x1="{:.0f}" x2="{:.0f}" y1="27" y2="27"/>'
            "{}"
            '<circle class="score" cx="{:.1f}" cy="27" r="5"/>'
        ).format(
            f"{title} on a line from 0: ours {value:.1f}{spread}; {said}",
            *(EDGE, WIDTH - EDGE, bar, x(value)),
            w=WIDTH,
        )
    ]
    for number, (name, score) in enumerate(marks.items()):
        at = x(score)
        anchor = "start" if at < WIDTH * 0.2 else "end" if at > WIDTH * 0.8 else "middle"
        edge = {"start": at - 2, "middle": at, "end": at + 2}[anchor]
        parts.append(
            Markup(
                '<line class="yardstick" x1="{0:.1f}" x2="{0:.1f}" y1="18" y2="36"/>'
                '<text class="tick" x="{1:.1f}" y="{2}" text-anchor="{3}">{4}</text>'
            ).format(at, edge, 12 if number % 2 else 50, anchor, f"{name} {score:.1f}")
        )
    return Markup("").join([*parts, Markup("</svg>")])
