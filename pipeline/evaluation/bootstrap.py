"""The bootstrap over images: how far scores would move with other images.

Images are drawn with replacement and each draw's scores computed anew (Koehn, "Statistical
Significance Tests for Machine Translation Evaluation", EMNLP 2004). The scores of a set of images
are functions of sums over them (CIDEr and ROUGE-L are means, BLEU is of its summed counts), so a
draw is a row of how often each image is in it, and its scores come from one product with the
table. CIDEr's document frequencies stay those of the whole split. They belong to the yardstick:
with each draw's own, every draw would be measured by another one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.evaluation.reports import DECIMALS
from pipeline.metrics.bleu import add_ngram_totals, bleu_from_counts
from pipeline.metrics.registry import ORDERS

CELLS = 1 << 20  # of the resamples that are held at a time: 8 MiB


def resample_counts(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, when as many as there are are drawn with replacement: arrays
    (some, images) of integers, `resamples` rows in all. Where they are cut changes no row."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // images)
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = rng.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]  # so that one count tells the rows apart
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)


def corpus_scores(counts: np.ndarray, means: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Corpus scores of resamples, x100: BLEU-1 to BLEU-4, then the means, (R, ORDERS + M).

    Args:
        counts: what BLEU sums, a row an image, (N, 2 + ORDERS).
        means: scores whose mean counts, (N, M), with at most DECIMALS decimals.
        drawn: how often each image is drawn, (R, N).
    """
    # All integers below 2**53: these sums are exact, whatever order a BLAS adds in.
    whole = np.rint(means * 10**DECIMALS)
    columns = np.concatenate([add_ngram_totals(counts), whole], axis=1).astype(float)
    sums = drawn.astype(float) @ columns  # (R, 2 + 2 ORDERS + M)
    split = 2 + 2 * ORDERS
    averages = sums[:, split:] / (10**DECIMALS * drawn.sum(axis=1, keepdims=True))
    return np.concatenate([bleu_from_counts(sums[:, :split]), averages], axis=1)


def score_intervals(
    counts: np.ndarray, means: np.ndarray, resamples: int, seed: int, confidence: float = 0.95
) -> Sequence[tuple[float, float]]:
    """The ends of each score's percentile interval, in the order of `corpus_scores`."""
    drawn = resample_counts(len(counts), resamples, seed)
    scores = np.concatenate([corpus_scores(counts, means, some) for some in drawn])
    outside = (1 - confidence) / 2
    low, high = np.quantile(scores, [outside, 1 - outside], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
