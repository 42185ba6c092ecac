"""Corpus BLEU (Papineni et al., ACL 2002) from the counts of each caption.

BLEU is not a mean over captions, but a function of sums over them. With the counts of each caption
at hand, the BLEU of any set of captions, such as a bootstrap resample (Koehn, EMNLP 2004), follows
from their sum.
"""

import numpy as np

from pipeline.metrics.registry import ORDERS

SCALE = 100.0
# The counts of a caption, as named in the header of scores.csv.
COUNT_NAMES = ("words", "closest_reference", *(f"matches_{n}" for n in range(1, ORDERS + 1)))


def add_ngram_totals(counts: np.ndarray) -> np.ndarray:
    """Append to `pipeline.metrics.scores.bleu_counts` (N, 2 + ORDERS) the number of n-grams of each
    caption: (N, 2 + 2 ORDERS), columns that can be summed."""
    orders = np.arange(1, ORDERS + 1)
    return np.concatenate([counts, np.maximum(counts[:, :1] + 1 - orders, 0)], axis=1)


def bleu_from_counts(sums: np.ndarray) -> np.ndarray:
    """Return BLEU-1 to BLEU-4, x100, (…, ORDERS), unsmoothed: 0 where no n-gram matches.

    Args:
        sums: the columns of `add_ngram_totals` summed over captions, (…, 2 + 2 ORDERS).
    """
    length, reference_length = sums[..., 0].astype(float), sums[..., 1]
    matches, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    with np.errstate(divide="ignore"):
        log_precisions = np.log(matches / np.maximum(totals, 1))  # (…, ORDERS)
        log_brevity = np.minimum(0.0, 1.0 - reference_length / np.maximum(length, 1e-9))
    means = log_precisions.cumsum(axis=-1) / np.arange(1, ORDERS + 1)
    return SCALE * np.exp(means + log_brevity[..., None])
