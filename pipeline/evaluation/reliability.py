"""How well confidences fit what came true."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics_file import Reliability

BINS = 10


def reliability(
    confidences: Sequence[float],
    log_probs: Sequence[float],
    cider: Sequence[float],
    threshold: float,
    reference: str,
) -> Reliability:
    """Compare the confidences of captions with their CIDEr, x100; the calibration error is the
    expected one of Guo et al. (ICML 2017), over the bins of `reliability_bins`.

    Args:
        log_probs: the mean log-probability of each caption, as the confidence without calibration.
    """
    outcomes = [score >= threshold for score in cider]
    bins = reliability_bins(confidences, outcomes)
    error = sum(count * abs(mean - share) for mean, share, count in bins) / len(confidences)
    return Reliability(
        reference=reference,
        threshold=threshold,
        mean=float(np.mean(confidences)),
        reached=float(np.mean(outcomes)),
        calibration_error=error,
        correlation=_rank_correlation(confidences, cider),
        log_prob_correlation=_rank_correlation(log_probs, cider),
    )


def reliability_bins(
    confidences: Sequence[float], outcomes: Sequence[bool]
) -> list[tuple[float, float, int]]:
    """Per tenth of the scale that has captions: their mean confidence, the share of outcomes that
    came true, and their number."""
    tenths: dict[int, list[int]] = {}
    for index, value in enumerate(confidences):
        tenths.setdefault(min(int(BINS * value), BINS - 1), []).append(index)
    return [
        (
            float(np.mean([confidences[i] for i in members])),
            float(np.mean([outcomes[i] for i in members])),
            len(members),
        )
        for _, members in sorted(tenths.items())
    ]


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation; 0 where one of the two never varies."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
