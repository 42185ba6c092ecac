"""The paired bootstrap: would the difference between two runs hold on other pictures?

Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004. Pictures
are drawn with replacement, the same ones for both runs, and each draw's scores are computed anew:
BLEU from the draw's summed counts, since it is no mean over captions; CIDEr and ROUGE-L as means
over the draw's captions. CIDEr's document frequencies stay those of the whole split. They belong to
the yardstick: with each draw's own, every draw would be measured by another one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.scoring.bleu import ORDERS, bleu_of_sums, with_totals

CHUNK = 500  # resamples held together
COUNTS = ["words", "closest_reference", *(f"matches_{n}" for n in range(1, ORDERS + 1))]
MEANS = ["cider", "rouge_l"]


@dataclass(frozen=True)
class Difference:
    """Head minus base, x100."""

    change: float
    low: float  # the interval's ends
    high: float
    p: float  # two-sided: how easily chance alone would do as much


def resampled(pictures: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture is drawn: (R, pictures) integers at a time, `resamples` rows in all.

    Args:
        seed: the same one draws the same.
    """
    chance = np.random.default_rng(seed)
    for begin in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - begin)
        drawn = chance.integers(pictures, size=(rows, pictures))
        drawn += pictures * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures)


def scores_of(columns: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """BLEU-4, CIDEr and ROUGE-L (R, 3) of draws (R, N) from the pictures' columns (N, K)."""
    sums = drawn @ columns  # (R, K)
    bleu_4 = bleu_of_sums(sums[:, : -len(MEANS)])[:, -1:]
    means = sums[:, -len(MEANS) :] / drawn.sum(axis=1, keepdims=True)
    return np.concatenate([bleu_4, means], axis=1)


def columns_of(scores: pd.DataFrame) -> np.ndarray:
    """What of a table of scores is summed, (N, K): BLEU's counts, and then the scores."""
    counts = with_totals(scores[COUNTS].to_numpy())
    return np.concatenate([counts, scores[MEANS].to_numpy()], axis=1).astype(float)


def compare_scores(
    base: pd.DataFrame, head: pd.DataFrame, resamples: int, confidence: float, seed: int
) -> dict[str, Difference]:
    """
    Args:
        base, head: rows of `reports/scores.csv`, of the same pictures in the same order.
        confidence: the share of draws that the interval holds, above 0.5.

    Returns:
        For `bleu_4`, `cider` and `rouge_l` the change, its percentile interval, and twice the
        share of draws on the smaller side of no change.
    """
    sides = [columns_of(scores) for scores in (base, head)]
    whole = np.ones((1, len(base)))
    change = scores_of(sides[1], whole)[0] - scores_of(sides[0], whole)[0]
    draws = np.concatenate(
        [
            scores_of(sides[1], drawn) - scores_of(sides[0], drawn)
            for drawn in resampled(len(base), resamples, seed)
        ]
    )  # (resamples, 3)
    outside = (1 - confidence) / 2
    low, high = np.quantile(draws, [outside, 1 - outside], axis=0)
    fewer = np.minimum((draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (fewer + 1) / (resamples + 1))  # never 0: the runs are a draw, too
    names = ["bleu_4", *MEANS]
    return {
        name: Difference(*(float(part[i]) for part in (change, low, high, p)))
        for i, name in enumerate(names)
    }
