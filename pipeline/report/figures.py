"""Which charts the page has, and the tables below them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from pipeline.report.charts import Chart, Series, bar_chart, line_chart, nice_ticks, plain
from pipeline.report.evaluation import CaptionedImage
from pipeline.report.tables import read_numbers
from pipeline.runtime.errors import ArtifactError

Column = list[float | None]


@dataclass(frozen=True)
class Figure:
    """A chart as a page shows it, and its numbers as a table: a header and rows of text."""

    chart: Chart
    drawing: Markup
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_lines: bool


def training_figures(history: Path, select_by: str) -> list[Figure]:
    """Loss, scores on val, and learning rate, by epoch.

    Args:
        select_by: the column by whose best the epoch was kept.

    Raises:
        InputError: the history is absent or damaged.
    """
    names = ("epoch", "learning_rate", "train_loss", "val_loss", "bleu_4", "cider")
    table = read_numbers(history, names)
    epochs = _epochs(table["epoch"], history)
    (losses,) = _full([table["val_loss"]])
    kept = _best(epochs, table[select_by], ties=[-loss for loss in losses])
    (rates,) = _full([table["learning_rate"]])
    return [
        _lines(
            Chart(
                key="loss",
                title="Loss",
                x_label="epoch",
                y_label="cross-entropy, nats a word",
                x=epochs,
                series=[
                    Series("val", table["val_loss"], "ours"),
                    Series("training", table["train_loss"], "other"),
                ],
                note="The training loss is measured with dropout and label smoothing, if any, "
                "so it may lie above val's.",
                mark=(kept, f"kept: {kept:.0f}"),
                from_zero=False,
            )
        ),
        _lines(
            Chart(
                key="val-scores",
                title="Scores on val",
                x_label="epoch",
                y_label="score, x100",
                x=epochs,
                series=[
                    Series("CIDEr", table["cider"], "ours"),
                    Series("BLEU-4", table["bleu_4"], "theirs"),
                ],
                note="Of captions searched greedily; the best epoch is kept.",
                mark=(kept, f"kept: {kept:.0f}"),
            )
        ),
        _lines(
            Chart(
                key="learning-rate",
                title="Learning rate",
                x_label="epoch",
                y_label="thousandths, at the epoch's first step",
                x=epochs,
                series=[Series("learning rate", [1000 * one for one in rates], "ours")],
            )
        ),
    ]


def self_critical_figure(history: Path) -> Figure | None:
    """Reward and CIDEr by epoch of self-critical training; None where there was no such training.

    Raises:
        InputError: the history is absent or damaged.
    """
    table = read_numbers(history, ("epoch", "reward", "bleu_4", "cider"), {"reward"})
    epochs = _epochs(table["epoch"], history)
    if len(epochs) < 2:
        return None
    kept = _best(epochs, table["cider"], ties=table["bleu_4"])
    return _lines(
        Chart(
            key="self-critical",
            title="Self-critical training",
            x_label="epoch",
            y_label="score, x100",
            x=epochs,
            series=[
                Series("CIDEr on val", table["cider"], "ours"),
                Series("reward on training images", table["reward"], "other"),
            ],
            note="The reward is the mean CIDEr-D (plus scst.bleu_weight times BLEU-4) of sampled "
            "captions. Epoch 0 is the model before self-critical training.",
            mark=(kept, f"kept: {kept:.0f}"),
            from_zero=False,
        )
    )


def length_figure(lengths: Path) -> Figure:
    """Words a caption, ours beside the references'.

    Raises:
        InputError: the table is absent or damaged.
    """
    table = read_numbers(lengths, ("words", "captions", "references"))
    rows = list(zip(*_full(table.values()), strict=True))
    if [row[0] for row in rows] != list(range(len(rows))):
        raise ArtifactError(lengths, "does not count words from 0")
    seen = [row for row in rows if row[1] or row[2]] or rows
    first, last = seen[0][0], seen[-1][0]
    words, ours, theirs = zip(*(row for row in rows if first <= row[0] <= last), strict=True)
    return _bars(
        Chart(
            key="lengths",
            title="Caption length",
            x_label="words",
            y_label="share of captions, %",
            x=words,
            series=[Series("ours", ours, "ours"), Series("references", theirs, "theirs")],
        )
    )


def score_figures(images: Sequence[CaptionedImage]) -> list[Figure]:
    """How the images' own scores are spread."""
    return [
        _histogram("cider", "CIDEr by image", [one.cider for one in images]),
        _histogram("rouge_l", "ROUGE-L by image", [one.rouge_l for one in images]),
    ]


def _histogram(key: str, title: str, values: Sequence[float]) -> Figure:
    edges = nice_ticks(0.0, max(values), most=26)
    wide = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int(value / wide), len(counts) - 1)] += 1
    mean = sum(values) / len(values)
    chart = Chart(
        key=key,
        title=title,
        x_label=f"score, x100, in steps of {plain(wide)}",
        y_label="images",
        x=[edge + wide / 2 for edge in edges[:-1]],
        series=[Series("images", counts, "ours")],
        mark=(mean, f"mean {mean:.1f}"),
        step=wide,
    )
    steps = [f"{plain(edge)} to {plain(edge + wide)}" for edge in edges[:-1]]
    rows = [(step, str(count)) for step, count in zip(steps, counts, strict=True)]
    return Figure(chart, bar_chart(chart), ("score", "images"), rows, is_lines=False)


def _lines(chart: Chart) -> Figure:
    return _figure(chart, line_chart, is_lines=True)


def _bars(chart: Chart) -> Figure:
    return _figure(chart, bar_chart, is_lines=False)


def _figure(chart: Chart, draw: Callable[[Chart], Markup], is_lines: bool) -> Figure:
    columns = [chart.x, *(series.values for series in chart.series)]
    rows = [
        ["" if value is None else plain(value) for value in row]
        for row in zip(*columns, strict=True)
    ]
    header = [chart.x_label, *(series.name for series in chart.series)]
    return Figure(chart, draw(chart), header, rows, is_lines)


def _full(columns: Iterable[Column]) -> list[list[float]]:
    """Columns that have no empty cell, which `read_numbers` has made sure of."""
    return [[one for one in column if one is not None] for column in columns]


def _epochs(column: Column, path: Path) -> list[float]:
    (epochs,) = _full([column])
    if any(late <= early for early, late in pairwise(epochs)):
        raise ArtifactError(path, "has epochs out of order")
    return epochs


def _best(epochs: Sequence[float], scores: Column, ties: Column) -> float:
    """The epoch with the highest score; of equals the highest of `ties`, as the stages keep it."""
    ranks = list(zip(*_full([scores, ties]), strict=True))
    return epochs[ranks.index(max(ranks))]
