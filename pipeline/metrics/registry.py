"""The metrics of metrics.json in one table. Whatever needs a fact about a metric reads it here."""

from dataclasses import dataclass

ORDERS = 4  # BLEU counts n-grams of 1 to 4 tokens


@dataclass(frozen=True)
class Metric:
    """A number in metrics.json."""

    key: str
    title: str
    higher_is_better: bool | None  # None: neither direction is better
    tested: bool = False  # whether `showtell compare` tests its change
    mean: bool = False  # whether it is the mean of per-image scores; BLEU is not
    label: str = ""  # its name on the report's page, beside the value in this format
    format: str = "{:.1f}"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("bleu_1", "BLEU-1", True),
        Metric("bleu_2", "BLEU-2", True),
        Metric("bleu_3", "BLEU-3", True),
        Metric("bleu_4", "BLEU-4", True, tested=True),
        Metric("cider", "CIDEr", True, tested=True, mean=True),
        Metric("rouge_l", "ROUGE-L", True, tested=True, mean=True),
        Metric("length", "length", None, label="words per caption"),
        Metric(
            "unique_captions", "unique captions", True, label="unique captions", format="{:.1f} %"
        ),
        Metric("repeated", "repeated", False, label="repeat themselves", format="{:.1f} %"),
        Metric("bad_endings", "bad endings", False, label="end mid-phrase", format="{:.1f} %"),
        Metric(
            "word_recall",
            "word recall",
            True,
            label="of reference words named",
            format="{:.1f} %",
        ),
        Metric(
            "vocabulary_used", "vocabulary used", None, label="distinct words", format="{:,.0f}"
        ),
    )
}
BLEU_NAMES = tuple(f"bleu_{n}" for n in range(1, ORDERS + 1))
MEAN_NAMES = tuple(key for key, metric in METRICS.items() if metric.mean)
SCORE_NAMES = BLEU_NAMES + MEAN_NAMES
DIVERSITY_NAMES = tuple(key for key in METRICS if key not in SCORE_NAMES)
TESTED_NAMES = tuple(key for key, metric in METRICS.items() if metric.tested)
