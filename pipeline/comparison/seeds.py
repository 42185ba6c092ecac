"""Groups of runs that differ by their seed: is a group better, whichever seed one had drawn?"""

import math
import statistics
from collections.abc import Sequence

from mpmath import betainc, findroot

from pipeline.comparison.bootstrap import Difference
from pipeline.comparison.judge import Change, Comparison, params_that_differ, require_alike
from pipeline.comparison.results import Results
from pipeline.config.compare import CompareConfig


def compare_groups(
    base: Sequence[Results], head: Sequence[Results], config: CompareConfig
) -> Comparison:
    """The means of two groups, and Welch's t-test (Biometrika 1947) across the runs of each.

    With one run on a side there is nothing to test: the scatter of seeds is not known there.

    Raises:
        InputError: the runs were not measured alike.
    """
    require_alike([*base, *head])
    names = [name for name in base[0].metrics if all(name in run.metrics for run in (*base, *head))]
    notes = [note for run in (*base, *head) for note in run.notes]
    if min(len(base), len(head)) < 2:
        notes.append("a side with one run has no scatter: no test across seeds")
    return Comparison(
        base=", ".join(run.name for run in base),
        head=", ".join(run.name for run in head),
        pictures=len(base[0].scores),
        params=params_that_differ(base, head),
        changes=[_change(name, base, head, config.confidence) for name in names],
        same=0,
        better=[],
        worse=[],
        notes=list(dict.fromkeys(notes)),
        seeds=(len(base), len(head)),
    )


def _change(
    name: str, base: Sequence[Results], head: Sequence[Results], confidence: float
) -> Change:
    before, after = ([run.metrics[name] for run in side] for side in (base, head))
    means = statistics.fmean(before), statistics.fmean(after)
    if min(len(before), len(after)) < 2:
        return Change(name, *means, difference=None)
    spread = statistics.stdev(before), statistics.stdev(after)
    return Change(name, *means, _welch(before, after, confidence), spread)


def _welch(base: Sequence[float], head: Sequence[float], confidence: float) -> Difference:
    change = statistics.fmean(head) - statistics.fmean(base)
    parts = [statistics.variance(side) / len(side) for side in (base, head)]
    error = math.sqrt(sum(parts))
    if error == 0:  # no scatter at all: t is not defined
        return Difference(change, change, change, 1.0 if change == 0 else 0.0)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (base, head), strict=True)
    )
    reach = error * _student_t(1 - confidence, freedom)
    p = _outside(abs(change) / error, freedom)
    return Difference(change, change - reach, change + reach, p)


def _outside(t: float, freedom: float) -> float:
    """The probability of a value beyond -t or t under Student's distribution."""
    x = freedom / (freedom + t * t)
    return float(betainc(freedom / 2, 0.5, 0, x, regularized=True))


def _student_t(p: float, freedom: float) -> float:
    """The t beyond which, on either side, lies the probability `p` in all."""
    within = 1.0
    while _outside(within, freedom) > p:
        within *= 2
    return float(
        findroot(lambda t: _outside(float(t), freedom) - p, (0, within), solver="anderson")
    )
