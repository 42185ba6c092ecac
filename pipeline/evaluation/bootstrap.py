"""The bootstrap over images: how much scores would vary with other images.

Each resample draws images with replacement and computes its scores (Koehn, "Statistical
Significance Tests for Machine Translation Evaluation", EMNLP 2004). The scores of a set of images
are functions of sums over them: CIDEr and ROUGE-L are means, and BLEU comes from summed counts. So
a resample is a row of how often it draws each image, and its scores follow from one product with
the table of counts and means. CIDEr's document frequencies stay those of the whole split: they are
part of the metric, and resamples with their own would each be scored by another metric.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.evaluation.metrics_file import DECIMALS
from pipeline.metrics.bleu import add_ngram_totals, bleu_from_counts
from pipeline.metrics.registry import ORDERS

MAX_CELLS = 1 << 20  # of the resamples in memory at a time: 8 MiB


def resample_counts(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of `resamples` resamples draws each image, in chunks (rows, images).

    The rows do not depend on the size of the chunks.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, MAX_CELLS // num_images)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(num_images, size=(rows, num_images))
        drawn += num_images * np.arange(rows)[:, None]  # one bincount then counts all rows
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images)


def corpus_scores(counts: np.ndarray, means: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the scores of resamples, x100: BLEU-1 to BLEU-4, then the means, (R, ORDERS + M).

    Args:
        counts: the counts that BLEU sums, a row per image, (N, 2 + ORDERS).
        means: per-image scores that are averaged, (N, M), with at most DECIMALS decimals.
        drawn: how often each image is drawn, (R, N).
    """
    # All values are integers below 2**53: the sums are exact, in whatever order BLAS adds.
    scaled = np.rint(means * 10**DECIMALS)
    columns = np.concatenate([add_ngram_totals(counts), scaled], axis=1).astype(float)
    sums = drawn.astype(float) @ columns  # (R, 2 + 2 ORDERS + M)
    split = 2 + 2 * ORDERS
    averages = sums[:, split:] / (10**DECIMALS * drawn.sum(axis=1, keepdims=True))
    return np.concatenate([bleu_from_counts(sums[:, :split]), averages], axis=1)


def score_intervals(
    counts: np.ndarray, means: np.ndarray, resamples: int, seed: int, confidence: float = 0.95
) -> Sequence[tuple[float, float]]:
    """Return each score's percentile interval, in the order of `corpus_scores`."""
    chunks = resample_counts(len(counts), resamples, seed)
    scores = np.concatenate([corpus_scores(counts, means, drawn) for drawn in chunks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
