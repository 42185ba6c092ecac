"""The scores at the top of the page, each with its interval and the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.bootstrap import score_intervals
from pipeline.evaluation.metrics_file import Baseline, Metrics, parse_metrics
from pipeline.evaluation.reports import Evaluation, counts_and_means
from pipeline.metrics.registry import METRICS, SCORE_NAMES
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import read_bytes

LARGE = ("cider", "bleu_4", "rouge_l")  # shown as large numbers; the table has all scores


@dataclass(frozen=True)
class Score:
    """A score x100, its 95 % interval, and the baselines' scores."""

    name: str
    title: str
    value: float
    interval: tuple[float, float] | None  # None if all resamples have nearly the same score
    baselines: dict[str, float]  # by name

    def x(self, score: float) -> float:
        """Return the place of a score on the line of `charts.html`, which goes from 6 to 294."""
        top = 1.06 * max(self.value, *(self.interval or ()), *self.baselines.values(), 1e-9)
        return 6 + 288 * min(score, top) / top


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
        interval = (low, high) if f"{low:.1f}" != f"{high:.1f}" else None  # as the page shows it
        marks = {baseline.name: baseline.scores[name] for baseline in baselines}
        rows.append(
            Score(name, METRICS[name].title, evaluation.metrics.numbers[name], interval, marks)
        )
    return rows
