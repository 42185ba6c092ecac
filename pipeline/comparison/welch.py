"""Welch's t-test over groups of runs: does a difference hold over training seeds?"""

import math
import statistics
from collections.abc import Sequence

from mpmath import betainc

from pipeline.comparison.paired_bootstrap import SignificanceResult
from pipeline.comparison.run_reports import RunReports
from pipeline.comparison.verdict import (
    Comparison,
    MetricChange,
    changed_params,
    collect_notes,
    require_comparable,
    stale_runs,
)
from pipeline.config.schema import CompareConfig


def compare_groups(
    base: Sequence[RunReports], head: Sequence[RunReports], config: CompareConfig
) -> Comparison:
    """Compare the means of two groups by Welch's t-test (Biometrika 1947).

    With a single run on one side there is no test: its variance is unknown.

    Raises:
        InputError: the runs were evaluated in different ways.
    """
    require_comparable([*base, *head])
    names = dict.fromkeys(name for run in (*base, *head) for name in run.metrics)
    notes = collect_notes(base, head)
    changes = [_change(name, base, head, config.confidence) for name in names]
    if min(len(base), len(head)) < 2:
        notes.append("a side with one run has no variance: no test across seeds")
    elif any(change.change and change.difference is None for change in changes):
        notes.append("a metric that is the same in all runs of each side cannot be tested")
    return Comparison(
        base=", ".join(run.name for run in base),
        head=", ".join(run.name for run in head),
        images=len(base[0].evaluation.scores),
        params=changed_params(base, head),
        changes=changes,
        same=0,
        better=[],
        worse=[],
        notes=notes,
        seeds=(len(base), len(head)),
        stale=stale_runs(head),
        revisions=([run.revision for run in base], [run.revision for run in head]),
    )


def _change(
    name: str, base: Sequence[RunReports], head: Sequence[RunReports], confidence: float
) -> MetricChange:
    before, after = _values(name, base), _values(name, head)
    spread = _stdev(before), _stdev(after)
    return MetricChange(
        metric=name,
        base=statistics.fmean(before) if before else None,
        head=statistics.fmean(after) if after else None,
        difference=None if None in spread else _welch(before, after, confidence),
        spread=spread,
    )


def _stdev(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _values(name: str, runs: Sequence[RunReports]) -> list[float]:
    """Return a metric of all runs; of none if one lacks it, because that is another group."""
    values = [run.metrics[name] for run in runs if name in run.metrics]
    return values if len(values) == len(runs) else []


def _welch(
    base: Sequence[float], head: Sequence[float], confidence: float
) -> SignificanceResult | None:
    """Return None if there is a change but no variance: t is not defined."""
    change = statistics.fmean(head) - statistics.fmean(base)
    parts = [statistics.variance(side) / len(side) for side in (base, head)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return SignificanceResult(change, change, change, 1.0) if change == 0 else None
    dof = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (base, head), strict=True)
    )
    margin = error * _student_t(1 - confidence, dof)
    p = _two_tailed(abs(change) / error, dof)
    return SignificanceResult(change, change - margin, change + margin, p)


def _two_tailed(t: float, dof: float) -> float:
    """Return the probability of a value beyond -t or t under Student's distribution."""
    x = dof / (dof + t * t)
    return float(betainc(dof / 2, 0.5, 0, x, regularized=True))


def _student_t(p: float, dof: float) -> float:
    """Return the t with `_two_tailed(t, dof) == p`."""
    low, high = 0.0, 1.0
    while _two_tailed(high, dof) > p:
        low, high = high, 2 * high
    for _ in range(60):  # bisection down to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _two_tailed(middle, dof) > p else (low, middle)
    return high
