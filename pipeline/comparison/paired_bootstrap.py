"""The paired bootstrap: would the difference between two runs hold on other images?

As `pipeline.evaluation.bootstrap`, with the same images drawn for both runs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluation.bootstrap import corpus_scores, resample_counts
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.registry import MEAN_NAMES, ORDERS, TESTED_NAMES


@dataclass(frozen=True)
class TestResult:
    """Head minus base, x100."""

    change: float
    low: float  # the interval's ends
    high: float
    p: float  # two-sided: how easily chance alone would do as much


def tested_scores(scores: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """BLEU-4, CIDEr and ROUGE-L, x100, (R, 3).

    Args:
        scores: rows of `reports/scores.csv`, (N, …).
        drawn: how often each image is drawn, (R, N).
    """
    counts, means = (scores[list(names)].to_numpy() for names in (COUNT_NAMES, MEAN_NAMES))
    return corpus_scores(counts, means, drawn)[:, ORDERS - 1 :]


def compare_scores(
    base: pd.DataFrame, head: pd.DataFrame, resamples: int, confidence: float, seed: int
) -> dict[str, TestResult]:
    """
    Args:
        base, head: rows of `reports/scores.csv`, of the same images in the same order.
        confidence: the share of draws that the interval holds, above 0.5.

    Returns:
        For `bleu_4`, `cider` and `rouge_l` the change, its percentile interval, and twice the
        share of draws on the smaller side of no change.
    """
    whole = np.ones((1, len(base)))
    change = (tested_scores(head, whole) - tested_scores(base, whole))[0]
    draws = np.concatenate(
        [
            tested_scores(head, drawn) - tested_scores(base, drawn)
            for drawn in resample_counts(len(base), resamples, seed)
        ]
    )  # (resamples, 3)
    outside = (1 - confidence) / 2
    low, high = np.quantile(draws, [outside, 1 - outside], axis=0)
    fewer = np.minimum((draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (fewer + 1) / (resamples + 1))  # never 0: the runs are a draw, too
    return {
        name: TestResult(*(float(part[i]) for part in (change, low, high, p)))
        for i, name in enumerate(TESTED_NAMES)
    }
