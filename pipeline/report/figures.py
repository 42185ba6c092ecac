"""The charts of the page, and the tables below them.

A function that reads a file raises an ArtifactError if the file is missing or damaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.evaluation.metrics_file import Reliability
from pipeline.evaluation.reliability import reliability_bins
from pipeline.evaluation.reports import read_lengths
from pipeline.metrics.csv_file import parse_csv, read_numbers, to_numbers
from pipeline.metrics.registry import METRICS
from pipeline.report.charts import Chart, Series, format_number, nice_ticks
from pipeline.report.gallery import CaptionedImage
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import read_bytes

CIDER, BLEU_4, ROUGE_L = (METRICS[key].title for key in ("cider", "bleu_4", "rouge_l"))


@dataclass(frozen=True)
class Figure:
    """A chart, and its numbers as a table: a header and rows of text."""

    chart: Chart
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def training_figures(history: Path, select_by: str) -> list[Figure]:
    """Plot the loss, the scores on val, and the learning rate, by epoch.

    Args:
        select_by: the column that the kept epoch was chosen by.
    """
    names = ("epoch", "learning_rate", "train_loss", "val_loss", "bleu_4", "cider")
    table = read_numbers(history, names)
    epochs = _check_epochs(table["epoch"], history)
    kept = _best(epochs, table[select_by], ties=[-loss for loss in table["val_loss"]])
    mark = (kept, f"kept: {kept:.0f}")
    return [
        _figure(
            Chart(
                key="loss",
                title="Loss",
                x_label="epoch",
                y_label="cross-entropy, nats per token; of train with label smoothing",
                x=epochs,
                series=[
                    Series("val", table["val_loss"], "ours"),
                    Series("training", table["train_loss"], "other"),
                ],
                note="The training loss is measured with dropout and label smoothing, if any, "
                "so it may lie above val's.",
                mark=mark,
                from_zero=False,
            )
        ),
        _figure(
            Chart(
                key="val-scores",
                title="Scores on val",
                x_label="epoch",
                y_label="score, x100",
                x=epochs,
                series=[
                    Series(CIDER, table["cider"], "ours"),
                    Series(BLEU_4, table["bleu_4"], "theirs"),
                ],
                note="Of greedy captions. The best epoch is kept.",
                mark=mark,
            )
        ),
        _figure(
            Chart(
                key="learning-rate",
                title="Learning rate",
                x_label="epoch",
                y_label="thousandths, at the epoch's first step",
                x=epochs,
                series=[
                    Series("learning rate", [1000 * lr for lr in table["learning_rate"]], "ours")
                ],
            )
        ),
    ]


def self_critical_figure(history: Path) -> Figure | None:
    """Plot reward and CIDEr by epoch of self-critical training; None if there was none."""
    cells = parse_csv(read_bytes(history), history, ("epoch", "reward", "bleu_4", "cider"))
    epochs, bleu_4, cider = (
        to_numbers(cells[name], f"{history}, {name}") for name in ("epoch", "bleu_4", "cider")
    )
    rewards = to_numbers([cell or "0" for cell in cells["reward"]], f"{history}, reward")
    if len(_check_epochs(epochs, history)) < 2:
        return None
    kept = _best(epochs, cider, ties=bleu_4)
    return _figure(
        Chart(
            key="self-critical",
            title="Self-critical training",
            x_label="epoch",
            y_label="score, x100",
            x=epochs,
            series=[
                Series(f"{CIDER} on val", cider, "ours"),
                Series("reward on training images", [None, *rewards[1:]], "other"),
            ],
            note="The reward is the mean CIDEr-D (plus scst.bleu_weight times BLEU-4) of sampled "
            "captions. Epoch 0 is the model before self-critical training.",
            mark=(kept, f"kept: {kept:.0f}"),
            from_zero=False,
        )
    )


def length_figure(lengths: Path) -> Figure:
    """Plot the words per caption of the model and of the references."""
    table = read_lengths(lengths)
    rows = list(zip(*table.values(), strict=True))
    used = [row[0] for row in rows if row[1] or row[2]] or table["words"]
    words, ours, theirs = zip(*(row for row in rows if used[0] <= row[0] <= used[-1]), strict=True)
    return _figure(
        Chart(
            key="lengths",
            title="Caption length",
            x_label="words",
            y_label="captions, %",
            x=words,
            series=[Series("model", ours, "ours"), Series("references", theirs, "theirs")],
            is_lines=False,
        )
    )


def score_figures(images: Sequence[CaptionedImage]) -> list[Figure]:
    """Plot the distribution of per-image scores."""
    return [
        _histogram("cider", f"{CIDER} by image", [image.cider for image in images]),
        _histogram("rouge_l", f"{ROUGE_L} by image", [image.rouge_l for image in images]),
    ]


def reliability_figure(images: Sequence[CaptionedImage], fit: Reliability) -> Figure:
    """Plot how often captions of each confidence were as good as the confidence says."""
    confidences = [image.confidence for image in images if image.confidence is not None]
    bins = reliability_bins(confidences, [image.cider >= fit.threshold for image in images])
    means, shares, counts = zip(*bins, strict=True)
    whose = "human captions" if fit.reference == "human" else "the model's own captions"
    figure = _figure(
        Chart(
            key="reliability",
            title="Confidence",
            x_label="confidence, %, mean of each tenth of the scale",
            y_label="captions as good as a typical one, %",
            x=[100 * mean for mean in means],
            series=[
                Series("came true", [100 * share for share in shares], "ours"),
                Series("as predicted", [100 * mean for mean in means], "theirs"),
            ],
            note=f"As good: with a CIDEr of at least {fit.threshold:.1f}, the median of {whose} on "
            f"val. Calibration error {100 * fit.calibration_error:.1f} %; rank "
            f"correlation with CIDEr {fit.correlation:.2f}, that of the mean log-probability "
            f"{fit.log_prob_correlation:.2f}.",
        )
    )
    rows = [[*row, str(count)] for row, count in zip(figure.rows, counts, strict=True)]
    return Figure(figure.chart, [*figure.header, "captions"], rows)


def _histogram(key: str, title: str, values: Sequence[float]) -> Figure:
    edges = nice_ticks(0.0, max(values), most=26)
    width = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int(value / width), len(counts) - 1)] += 1
    mean = sum(values) / len(values)
    chart = Chart(
        key=key,
        title=title,
        x_label=f"score, x100, in bins of {format_number(width)}",
        y_label="images",
        x=[edge + width / 2 for edge in edges[:-1]],
        series=[Series("images", counts, "ours")],
        mark=(mean, f"mean {mean:.1f}"),
        step=width,
        is_lines=False,
    )
    bins = [f"{format_number(edge)} to {format_number(edge + width)}" for edge in edges[:-1]]
    rows = [(label, str(count)) for label, count in zip(bins, counts, strict=True)]
    return Figure(chart, ("score", "images"), rows)


def _figure(chart: Chart) -> Figure:
    columns = [chart.x, *(series.values for series in chart.series)]
    rows = [
        ["" if value is None else format_number(value) for value in row]
        for row in zip(*columns, strict=True)
    ]
    header = [chart.x_label, *(series.name for series in chart.series)]
    return Figure(chart, header, rows)


def _check_epochs(epochs: list[float], path: Path) -> list[float]:
    if any(later <= earlier for earlier, later in pairwise(epochs)):
        raise ArtifactError(path, "has epochs out of order")
    return epochs


def _best(epochs: Sequence[float], scores: Sequence[float], ties: Sequence[float]) -> float:
    """Return the epoch with the highest score, and of equals the highest in `ties`, as the stages
    choose it."""
    ranks = list(zip(scores, ties, strict=True))
    return epochs[ranks.index(max(ranks))]
