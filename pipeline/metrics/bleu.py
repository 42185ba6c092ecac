"""Corpus BLEU (Papineni et al., ACL 2002) by way of each caption's counts.

BLEU is no mean over captions, but it is a function of sums over them. So the counts of each caption
are what is kept: the BLEU of any set of them, as of a bootstrap's resamples (Koehn, EMNLP 2004), is
that of their sum.
"""

import numpy as np

from pipeline.metrics.registry import ORDERS

SCALE = 100.0
# What is counted of a caption, as the columns of a table of scores are called.
COUNT_NAMES = ("words", "closest_reference", *(f"matches_{n}" for n in range(1, ORDERS + 1)))


def add_ngram_totals(counts: np.ndarray) -> np.ndarray:
    """Counts (N, 2 + ORDERS) as `pipeline.metrics.scores.bleu_counts` gives them, and behind them
    how many n-grams each caption has, (N, 2 + 2 ORDERS): columns that may be summed."""
    orders = np.arange(1, ORDERS + 1)
    return np.concatenate([counts, np.maximum(counts[:, :1] + 1 - orders, 0)], axis=1)


def bleu_from_counts(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4, x100, (…, ORDERS), unsmoothed: 0 where no n-gram matches.

    Args:
        sums: any number of captions' columns as `add_ngram_totals` gives them, (…, 2 + 2 ORDERS).
    """
    words, closest = sums[..., 0].astype(float), sums[..., 1]
    matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    with np.errstate(divide="ignore"):
        precisions = np.log(matches / np.maximum(totals, 1))  # (…, ORDERS)
        penalty = np.minimum(0.0, 1.0 - closest / np.maximum(words, 1e-9))  # of short captions
    means = precisions.cumsum(axis=-1) / np.arange(1, ORDERS + 1)
    return SCALE * np.exp(means + penalty[..., None])
