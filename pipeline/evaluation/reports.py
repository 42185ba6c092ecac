"""The reports of an evaluation: the captions, their references, scores per image, and lengths.

Each format is written, read and checked here alone; metrics.json is in `metrics_file`. Reports are
parsed from bytes, because `showtell compare` reads them from git.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.evaluation.bootstrap import corpus_scores
from pipeline.evaluation.metrics_file import DECIMALS, Metrics, parse_metrics, require_intact
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.csv_file import parse_csv, read_numbers, to_numbers, write_csv
from pipeline.metrics.registry import MEAN_NAMES, METRICS, SCORE_NAMES
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import parse_json, read_bytes, write_json

CONFIDENCE = "confidence"  # a column of scores.csv if the model was calibrated
TOLERANCE = 0.01  # x100: the reports are rounded to DECIMALS


class ReportFiles(NamedTuple):
    """The paths of a run's reports."""

    metrics: Path
    captions: Path
    references: Path
    scores: Path
    lengths: Path
    history: Path
    scst: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "ReportFiles":
        names = (
            "metrics.json captions.json references.json scores.csv lengths.csv history.csv scst.csv"
        )
        return cls(*(folder / name for name in names.split()))

    @property
    def evaluation(self) -> tuple[Path, Path, Path, Path]:
        """The reports that one digest covers, in the order of `parse_evaluation`."""
        return self.metrics, self.captions, self.references, self.scores


class Source(NamedTuple):
    """The content of a report, and what messages call it."""

    content: bytes
    where: object


@dataclass(frozen=True)
class Evaluation:
    """The reports of one evaluation, checked against each other."""

    metrics: Metrics
    captions: dict[str, str]  # by image id
    references: dict[str, list[str]]  # by image id
    # COUNT_NAMES, MEAN_NAMES and perhaps CONFIDENCE by image id, in the order of the captions.
    scores: pd.DataFrame


def write_captions(path: Path, ids: Sequence[str], captions: Sequence[Sequence[str]]) -> None:
    """Write captions in COCO's results format: a list of `{"image_id": …, "caption": …}`."""
    rows = zip(ids, captions, strict=True)
    write_json(path, [{"image_id": key, "caption": " ".join(caption)} for key, caption in rows])


def write_references(
    path: Path, ids: Sequence[str], references: Sequence[Sequence[Sequence[str]]]
) -> None:
    """Write what the captions were scored against: lists of references by image id."""
    pairs = zip(ids, references, strict=True)
    write_json(path, {image_id: [" ".join(ref) for ref in refs] for image_id, refs in pairs})


def write_scores(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a row of scores per image."""
    write_csv(path, columns, float_format=f"%.{DECIMALS}f")


def write_lengths(
    path: Path, captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> None:
    """Write the percentage of captions, and of references, that have each number of words."""
    ours = Counter(len(caption) for caption in captions)
    theirs = Counter(len(ref) for refs in references for ref in refs)
    lengths = range(max(*ours, *theirs) + 1)
    columns = {
        "words": lengths,
        "captions": [100 * ours[n] / ours.total() for n in lengths],
        "references": [100 * theirs[n] / theirs.total() for n in lengths],
    }
    write_scores(path, columns)


def read_lengths(path: Path) -> dict[str, list[float]]:
    """Read the columns that `write_lengths` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    table = read_numbers(path, ("words", "captions", "references"))
    if table["words"] != list(range(len(table["words"]))):
        raise ArtifactError(path, "does not count words from 0")
    return table


def read_evaluation(metrics: Path, captions: Path, references: Path, scores: Path) -> Evaluation:
    """Read the reports of an evaluation, with all metrics of this version.

    Raises:
        ArtifactError: a report is missing or damaged, or they do not belong together.
    """
    paths = (metrics, captions, references, scores)
    evaluation = parse_evaluation(*(Source(read_bytes(path), path) for path in paths))
    if missing := [name for name in METRICS if name not in evaluation.metrics.numbers]:
        raise ArtifactError(metrics, f"has no {missing[0]}")
    return evaluation


def parse_evaluation(
    metrics: Source, captions: Source, references: Source, scores: Source
) -> Evaluation:
    """Parse the reports of an evaluation and check that they belong together."""
    captions_by_id = _parse_captions(*captions)
    references_by_id = _parse_references(*references)
    table = _parse_scores(*scores)
    _require_same_ids(captions_by_id, captions.where, references_by_id, references.where)
    _require_same_ids(captions_by_id, captions.where, table.index, scores.where)
    parsed = parse_metrics(*metrics)
    (whole,) = corpus_scores(*counts_and_means(table), np.ones((1, len(table))))
    for name, expected in zip(SCORE_NAMES, whole.tolist(), strict=True):
        found = parsed.numbers.get(name, expected)
        if abs(found - expected) > TOLERANCE:
            raise ArtifactError(
                metrics.where,
                f"has {name} {found:.2f}, but the images of {scores.where} come to "
                f"{expected:.2f}: they are of two evaluations",
            )
    require_intact(*metrics, [report.content for report in (captions, references, scores)])
    scores_by_id = table.loc[list(captions_by_id)]
    return Evaluation(parsed, captions_by_id, references_by_id, scores_by_id)


def counts_and_means(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Split scores into what BLEU sums, (N, 2 + ORDERS), and what is averaged, (N, M)."""
    return scores[list(COUNT_NAMES)].to_numpy(), scores[list(MEAN_NAMES)].to_numpy()


def _parse_captions(content: bytes, where: object) -> dict[str, str]:
    rows = parse_json(content, where)
    try:
        captions = {row["image_id"]: row["caption"] for row in rows}
        valid = len(captions) == len(rows) > 0 and _all_text([*captions, *captions.values()])
    except (KeyError, TypeError):
        valid = False
    if not valid:
        raise ArtifactError(where, "is not a list of captions, one per image")
    return captions


def _parse_references(content: bytes, where: object) -> dict[str, list[str]]:
    references = parse_json(content, where)
    if not (
        isinstance(references, dict)
        and all(isinstance(refs, list) and refs and _all_text(refs) for refs in references.values())
    ):
        raise ArtifactError(where, "is not an object of lists of captions")
    return references


def _parse_scores(content: bytes, where: object) -> pd.DataFrame:
    names = [*COUNT_NAMES, *MEAN_NAMES]
    if CONFIDENCE in content.partition(b"\n")[0].decode(errors="replace").split(","):
        names.append(CONFIDENCE)
    cells = parse_csv(content, where, ["image_id", *names])
    columns = {name: to_numbers(cells[name], f"{where}, {name}") for name in names}
    table = pd.DataFrame(columns, index=cells["image_id"])
    if table.index.has_duplicates:
        raise ArtifactError(where, "has an image twice")
    if CONFIDENCE in table and not table[CONFIDENCE].between(0, 1).all():
        raise ArtifactError(where, "has a confidence that is not a probability")
    counts = table[list(COUNT_NAMES)]
    if ((counts < 0) | (counts != counts.round())).any(axis=None):
        raise ArtifactError(where, "has counts that are not whole numbers")
    return table.astype(dict.fromkeys(COUNT_NAMES, int))


def _all_text(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _require_same_ids(
    ids: Iterable[str], where: object, other_ids: Iterable[str], other: object
) -> None:
    first, second = set(ids), set(other_ids)
    for missing, lacking, having in (
        (first - second, other, where),
        (second - first, where, other),
    ):
        if missing:
            raise ArtifactError(
                lacking,
                f"has no image {min(missing)!r}, which {having} has: they are of two evaluations",
            )
