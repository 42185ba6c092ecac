"""How sure the scores are: bootstrap intervals over the pictures.

The scores of a set of pictures are functions of sums over them (CIDEr and ROUGE-L are means, BLEU
is of its summed counts), so a resample is a row of how often each picture is drawn, and its scores
come from one product with the table. CIDEr's document frequencies stay those of the whole split.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.scoring.bleu import ORDERS, bleu_of_sums, with_totals
from pipeline.store.results import DECIMALS

CELLS = 1 << 20  # of the resamples that are held at a time: 8 MiB
CONFIDENCE = 0.95


def resample_counts(pictures: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture is drawn, when as many as there are are drawn with replacement: arrays
    (some, pictures) of integers, `resamples` rows in all. Where they are cut changes no row."""
    chance = np.random.default_rng(seed)
    shares = np.full(pictures, 1 / pictures)
    at_once = max(1, CELLS // pictures)
    for begin in range(0, resamples, at_once):
        yield chance.multinomial(pictures, shares, size=min(at_once, resamples - begin))


def corpus_scores(counts: np.ndarray, means: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Corpus scores of resamples, x100: BLEU-1 to BLEU-4, then the means, (R, ORDERS + M).

    Args:
        counts: what BLEU sums, a row a picture, (N, 2 + ORDERS).
        means: scores whose mean counts, (N, M), with at most DECIMALS decimals.
        drawn: how often each picture is drawn, (R, N).
    """
    # All integers below 2**53: these sums are exact, whatever order a BLAS adds in.
    whole = np.rint(means * 10**DECIMALS)
    columns = np.concatenate([with_totals(counts), whole], axis=1).astype(float)
    sums = drawn.astype(float) @ columns  # (R, 2 + 2 ORDERS + M)
    split = 2 + 2 * ORDERS
    averages = sums[:, split:] / (10**DECIMALS * drawn.sum(axis=1, keepdims=True))
    return np.concatenate([bleu_of_sums(sums[:, :split]), averages], axis=1)


def score_intervals(
    counts: np.ndarray, means: np.ndarray, resamples: int, seed: int
) -> Sequence[tuple[float, float]]:
    """The ends of each score's 95 % percentile interval, in the order of `corpus_scores`."""
    drawn = resample_counts(len(counts), resamples, seed)
    scores = np.concatenate([corpus_scores(counts, means, some) for some in drawn])
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, [outside, 1 - outside], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
