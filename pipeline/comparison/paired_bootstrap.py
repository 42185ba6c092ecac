"""The paired bootstrap: would the difference between two runs hold on other images?

As `pipeline.evaluation.bootstrap`, but each resample draws the same images for both runs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluation.bootstrap import corpus_scores, resample_counts
from pipeline.evaluation.reports import counts_and_means
from pipeline.metrics.registry import SCORE_NAMES, TESTED_NAMES

TESTED = [SCORE_NAMES.index(name) for name in TESTED_NAMES]


@dataclass(frozen=True)
class SignificanceResult:
    """Head minus base, x100."""

    change: float
    low: float  # of the interval
    high: float
    p: float  # two-sided: the probability of such a change by chance alone


def compare_scores(
    base: pd.DataFrame, head: pd.DataFrame, resamples: int, confidence: float, seed: int
) -> dict[str, SignificanceResult]:
    """Test scores for a difference.

    Args:
        base, head: the scores of the same images in the same order.
        confidence: the fraction of resamples inside the interval, above 0.5.

    Returns:
        By score: the change, its percentile interval, and twice the fraction of resamples on the
        smaller side of no change.
    """

    def change_of(drawn: np.ndarray) -> np.ndarray:
        before, after = (corpus_scores(*counts_and_means(side), drawn) for side in (base, head))
        return (after - before)[:, TESTED]

    change = change_of(np.ones((1, len(base))))[0]
    chunks = resample_counts(len(base), resamples, seed)
    changes = np.concatenate([change_of(drawn) for drawn in chunks])  # (resamples, tested scores)
    tail = (1 - confidence) / 2
    low, high = np.quantile(changes, [tail, 1 - tail], axis=0)
    smaller_side = np.minimum((changes <= 0).sum(axis=0), (changes >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (smaller_side + 1) / (resamples + 1))  # never 0: the data counts too
    return {
        name: SignificanceResult(float(change[i]), float(low[i]), float(high[i]), float(p[i]))
        for i, name in enumerate(TESTED_NAMES)
    }
