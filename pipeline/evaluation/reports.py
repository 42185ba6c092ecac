"""What evaluation leaves: captions, a score per image, and metrics, all for git to carry."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.runtime.files import atomic_write, json_digest, write_json

DECIMALS = 4


@dataclass(frozen=True)
class ReportFiles:
    """Where the reports of a run are, in one folder."""

    folder: Path

    @property
    def captions(self) -> Path:
        return self.folder / "captions.json"

    @property
    def references(self) -> Path:
        return self.folder / "references.json"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.csv"

    @property
    def lengths(self) -> Path:
        return self.folder / "lengths.csv"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def scst(self) -> Path:
        return self.folder / "scst.csv"


def write_captions(path: Path, ids: Sequence[str], captions: Sequence[Sequence[str]]) -> None:
    """COCO's results form: a list of `{"image_id": …, "caption": …}`."""
    pairs = zip(ids, captions, strict=True)
    write_json(path, [{"image_id": one, "caption": " ".join(caption)} for one, caption in pairs])


def write_references(
    path: Path, ids: Sequence[str], references: Sequence[Sequence[Sequence[str]]]
) -> None:
    """What the captions were scored against: an object of lists of captions by image."""
    pairs = zip(ids, references, strict=True)
    write_json(path, {one: [" ".join(caption) for caption in refs] for one, refs in pairs})


def write_scores(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    """A row an image."""
    with atomic_write(path) as scratch:
        pd.DataFrame(columns).to_csv(
            scratch, index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n"
        )


def write_lengths(
    path: Path, captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> None:
    """What percentage of captions, and of references, has each number of words."""
    ours = Counter(len(caption) for caption in captions)
    theirs = Counter(len(one) for refs in references for one in refs)
    write_scores(
        path,
        {
            "words": range(max(*ours, *theirs) + 1),
            "captions": [100 * ours[n] / ours.total() for n in range(max(*ours, *theirs) + 1)],
            "references": [
                100 * theirs[n] / theirs.total() for n in range(max(*ours, *theirs) + 1)
            ],
        },
    )


def write_metrics(path: Path, metrics: dict[str, Any], beside: Sequence[Path]) -> None:
    """Metrics as DVC reads them; numbers rounded, so that a diff shows what matters.

    DVC's tables have a column for every key and pass lists over. So what is the model's own stands
    at the top, and what it is to be read with (`baselines`, `meta`) in lists: a table of 30
    columns is not read.

    Args:
        beside: the reports that they were computed from; `meta` gets a digest of all together.

    Raises:
        ValueError: a number is not finite.
    """
    write_json(path, sealed(_rounded(metrics), [report.read_bytes() for report in beside]))


def sealed(metrics: dict[str, Any], beside: Sequence[bytes]) -> dict[str, Any]:
    """Metrics with a digest of themselves and of the reports beside them, by their bytes."""
    (meta,) = metrics["meta"]
    bare = {key: value for key, value in meta.items() if key != "digest"}
    digests = [hashlib.sha256(report).hexdigest() for report in beside]
    digest = json_digest([{**metrics, "meta": [bare]}, digests])
    return {**metrics, "meta": [{**bare, "digest": digest}]}


def is_intact(metrics: dict[str, Any], beside: Sequence[bytes]) -> bool:
    """Whether metrics and the reports beside them are what was written together.

    Raises:
        KeyError, TypeError, ValueError: they are no metrics of this version.
    """
    (meta,), (again,) = metrics["meta"], sealed(metrics, beside)["meta"]
    return bool(meta["digest"] == again["digest"])


def score_table(metrics: dict[str, Any]) -> str:
    """For people: the model's scores beside the yardsticks', a line a score."""
    baselines = metrics["baselines"]
    lines = [f"{'x100':8}{'model':>10}" + "".join(f"{one['name']:>10}" for one in baselines)]
    for name in (key for key in baselines[0] if key in metrics):
        values = [metrics[name], *(one[name] for one in baselines)]
        lines.append(f"{name:8}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
