"""Welch's t-test over groups of runs: does a difference hold over training seeds?"""

import math
import statistics
from collections.abc import Sequence

from mpmath import betainc

from pipeline.comparison.paired_bootstrap import SignificanceResult


def welch_test(
    base: Sequence[float], head: Sequence[float], confidence: float
) -> SignificanceResult | None:
    """Compare the means of two groups by Welch's t-test (Biometrika 1947).

    Returns:
        None where t is not defined: a group has one run, or there is a change but no variance.
    """
    if min(len(base), len(head)) < 2:
        return None
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
