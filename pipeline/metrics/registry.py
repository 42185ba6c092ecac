"""The metrics by key: the one table that reports, comparison and page read."""

from dataclasses import dataclass

ORDERS = 4  # of n-grams


@dataclass(frozen=True)
class Metric:
    """A number of metrics.json."""

    key: str
    title: str
    higher_is_better: bool | None  # None: neither more nor less is better
    tested: bool = False  # whether `showtell compare` tests its change
    mean: bool = False  # whether it is the mean of the images' scores; BLEU is not


METRICS = {
    metric.key: metric
    for metric in (
        Metric("bleu_1", "BLEU-1", True),
        Metric("bleu_2", "BLEU-2", True),
        Metric("bleu_3", "BLEU-3", True),
        Metric("bleu_4", "BLEU-4", True, tested=True),
        Metric("cider", "CIDEr", True, tested=True, mean=True),
        Metric("rouge_l", "ROUGE-L", True, tested=True, mean=True),
        Metric("length", "length", None),
        Metric("unique_captions", "unique captions", True),
        Metric("repeated", "repeated", False),
        Metric("bad_endings", "bad endings", False),
        Metric("vocabulary_used", "vocabulary used", None),
    )
}
BLEU_NAMES = tuple(f"bleu_{n}" for n in range(1, ORDERS + 1))
MEAN_NAMES = tuple(key for key, metric in METRICS.items() if metric.mean)
SCORE_NAMES = BLEU_NAMES + MEAN_NAMES  # of captions against references
DIVERSITY_NAMES = tuple(key for key in METRICS if key not in SCORE_NAMES)  # of captions alone
TESTED_NAMES = tuple(key for key, metric in METRICS.items() if metric.tested)
