"""Groups of runs that differ by their seed: is a group better, whichever seed one had drawn?"""

import math
import statistics
from collections.abc import Sequence

from mpmath import betainc

from pipeline.comparison.paired_bootstrap import TestResult
from pipeline.comparison.run_reports import RunReports
from pipeline.comparison.verdict import (
    Comparison,
    MetricChange,
    notes_of,
    params_that_differ,
    require_comparable,
    stale,
)
from pipeline.config.schema import CompareConfig


def compare_groups(
    base: Sequence[RunReports], head: Sequence[RunReports], config: CompareConfig
) -> Comparison:
    """The means of two groups, and Welch's t-test (Biometrika 1947) across the runs of each.

    With one run on a side there is nothing to test: the scatter of seeds is not known there.

    Raises:
        InputError: the runs were not measured alike.
    """
    require_comparable([*base, *head])
    names = dict.fromkeys(name for run in (*base, *head) for name in run.metrics)
    notes = notes_of(base, head)
    changes = [_change(name, base, head, config.confidence) for name in names]
    if min(len(base), len(head)) < 2:
        notes.append("a side with one run has no scatter: no test across seeds")
    elif any(one.change and one.difference is None for one in changes):
        notes.append("where the runs of both sides do not differ there is nothing to test by")
    return Comparison(
        base=", ".join(run.name for run in base),
        head=", ".join(run.name for run in head),
        images=len(base[0].scores),
        params=params_that_differ(base, head),
        changes=changes,
        same=0,
        better=[],
        worse=[],
        notes=notes,
        seeds=(len(base), len(head)),
        stale=stale(head),
        revisions=([run.revision for run in base], [run.revision for run in head]),
    )


def _change(
    name: str, base: Sequence[RunReports], head: Sequence[RunReports], confidence: float
) -> MetricChange:
    before, after = _values(name, base), _values(name, head)
    mean_before, mean_after = (statistics.fmean(one) if one else None for one in (before, after))
    spread = _deviation(before), _deviation(after)
    tested = None not in spread
    difference = _welch(before, after, confidence) if tested else None
    return MetricChange(name, mean_before, mean_after, difference, spread)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _values(name: str, runs: Sequence[RunReports]) -> list[float]:
    """A metric of all runs; none where one lacks it: the mean of the rest is another group's."""
    known = [run.metrics[name] for run in runs if name in run.metrics]
    return known if len(known) == len(runs) else []


def _welch(base: Sequence[float], head: Sequence[float], confidence: float) -> TestResult | None:
    """None where there is a change and no scatter at all: t is not defined."""
    change = statistics.fmean(head) - statistics.fmean(base)
    parts = [statistics.variance(side) / len(side) for side in (base, head)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return TestResult(change, change, change, 1.0) if change == 0 else None
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (base, head), strict=True)
    )
    reach = error * _student_t(1 - confidence, freedom)
    p = _outside(abs(change) / error, freedom)
    return TestResult(change, change - reach, change + reach, p)


def _outside(t: float, freedom: float) -> float:
    """The probability of a value beyond -t or t under Student's distribution."""
    x = freedom / (freedom + t * t)
    return float(betainc(freedom / 2, 0.5, 0, x, regularized=True))


def _student_t(p: float, freedom: float) -> float:
    """The t beyond which, on either side, lies the probability `p` in all."""
    low, high = 0.0, 1.0
    while _outside(high, freedom) > p:
        low, high = high, 2 * high
    for _ in range(60):  # halved down to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > p else (low, middle)
    return high
