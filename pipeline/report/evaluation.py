"""What `evaluate` left, read back and found to be of one evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.bootstrap import corpus_scores
from pipeline.evaluation.reports import is_intact
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.registry import DIVERSITY_NAMES, MEAN_NAMES, SCORE_NAMES
from pipeline.report.tables import number, read_rows
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import read_json

NEAR = 0.01  # x100: the reports are rounded to four decimals


@dataclass(frozen=True)
class CaptionedImage:
    """One image of the split, as it was captioned and scored."""

    image_id: str
    caption: str
    references: Sequence[str]
    cider: float
    rouge_l: float
    words: int


@dataclass(frozen=True)
class Baseline:
    """What the scores are read beside, on the same images."""

    name: str
    caption: str | None  # what it says, if it says one thing
    scores: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores x100 of one set of captions, and all that they were computed from."""

    scores: dict[str, float]
    diversity: dict[str, float]
    split: str
    untrained: bool  # whether the CNN's weights were random
    baselines: Sequence[Baseline]
    meta: dict[str, str]
    images: Sequence[CaptionedImage]
    counts: np.ndarray  # what BLEU sums, (N, 2 + ORDERS)
    means: np.ndarray  # CIDEr and ROUGE-L of each image, (N, 2)


def read_evaluation(captions: Path, references: Path, scores: Path, metrics: Path) -> Evaluation:
    """
    Raises:
        InputError: a report is absent or damaged, or they are not of one evaluation.
    """
    said = _read_captions(captions)
    refs = _read_references(references)
    rows = {row["image_id"]: row for row in _read_scores(scores)}
    for path, ids in ((references, refs.keys()), (scores, rows.keys())):
        _require_same_ids(said.keys(), captions, ids, path)
    table = np.array(
        [[number(rows[one][name], f"{scores}, {one}, {name}") for name in _NUMBERS] for one in said]
    )  # (N, 6 + 2)
    counts, means = table[:, : len(COUNT_NAMES)], table[:, len(COUNT_NAMES) :]
    if (counts < 0).any() or (counts != np.rint(counts)).any():
        raise ArtifactError(scores, "has counts that are not whole numbers")
    images = [
        CaptionedImage(one, caption, refs[one], row[-2], row[-1], int(row[0]))
        for (one, caption), row in zip(said.items(), table.tolist(), strict=True)
    ]
    reports = [captions, references, scores]
    return _with_metrics(metrics, reports, images, counts.astype(np.int64), means)


def read_base(path: Path, evaluation: Evaluation) -> Baseline:
    """The scores of another run to set these beside, from its metrics.

    Raises:
        InputError: the file is absent or damaged, or the runs were not measured alike.
    """
    content = read_json(path)
    try:
        terms = {str(key): str(value) for key, value in dict(content["meta"][0]).items()}
        terms["split"] = str(content["split"])
        base = Baseline("base", None, _numbers(content, SCORE_NAMES, path))
    except (KeyError, TypeError, IndexError, ValueError):
        raise InputError(
            f"{path} is not a metrics file of this version; evaluate again there"
        ) from None
    ours = {**evaluation.meta, "split": evaluation.split}
    for name in ("split", "split_digest", "tokenizer", "scale", "images", "references"):
        if terms.get(name) != ours.get(name):
            raise InputError(
                f"{path} has another {name} ({terms.get(name)}) than this run ({ours.get(name)}); "
                "name a run that was evaluated alike, or none"
            )
    return base


_NUMBERS = [*COUNT_NAMES, *MEAN_NAMES]


def _with_metrics(
    path: Path,
    reports: Sequence[Path],
    images: Sequence[CaptionedImage],
    counts: np.ndarray,
    means: np.ndarray,
) -> Evaluation:
    content = read_json(path)
    try:
        evaluation = Evaluation(
            scores=_numbers(content, SCORE_NAMES, path),
            diversity=_numbers(content, DIVERSITY_NAMES, path),
            split=str(content["split"]),
            untrained="backbone" in content,
            baselines=[
                Baseline(
                    str(one["name"]),
                    str(one["caption"]) if "caption" in one else None,
                    _numbers(one, SCORE_NAMES, path),
                )
                for one in content["baselines"]
            ],
            meta={str(key): str(value) for key, value in dict(content["meta"][0]).items()},
            images=images,
            counts=counts,
            means=means,
        )
        intact = is_intact(content, [report.read_bytes() for report in reports])
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        raise ArtifactError(path, "is not a metrics file of this version") from None
    (whole,) = corpus_scores(counts, means, np.ones((1, len(images))))
    for name, value in zip(SCORE_NAMES, whole.tolist(), strict=True):
        if abs(value - evaluation.scores[name]) > NEAR:
            raise ArtifactError(
                path,
                f"has {name} {evaluation.scores[name]:.2f}, but the images of {reports[-1]} come "
                f"to {value:.2f}: they are of two evaluations",
            )
    if not intact:
        raise ArtifactError(path, "or a report beside it is not what was written")
    return evaluation


def _numbers(content: dict[str, Any], names: Sequence[str], path: Path) -> dict[str, float]:
    return {name: number(content[name], f"{path}, {name}") for name in names}


def _read_captions(path: Path) -> dict[str, str]:
    content = read_json(path)
    try:
        said = {one["image_id"]: one["caption"] for one in content}
        good = len(said) == len(content) > 0 and _all_text([*said, *said.values()])
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ArtifactError(path, "is not a list of captions, one per image")
    return said


def _read_references(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    if not (
        isinstance(content, dict)
        and all(isinstance(refs, list) and refs and _all_text(refs) for refs in content.values())
    ):
        raise ArtifactError(path, "is not an object of lists of captions")
    return content


def _read_scores(path: Path) -> list[dict[str, str]]:
    rows = read_rows(path, ["image_id", *_NUMBERS])
    if len({row["image_id"] for row in rows}) < len(rows):
        raise ArtifactError(path, "has an image twice")
    return rows


def _all_text(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _require_same_ids(ids: Any, path: Path, others: Any, other: Path) -> None:
    for missing, where, has in ((ids - others, other, path), (others - ids, path, other)):
        if missing:
            raise ArtifactError(
                where,
                f"has no image {min(missing)!r}, which {has} has: they are of two evaluations",
            )
