"""metrics.json: written, read and checked here alone.

DVC's tables have a column for every top-level key and skip lists. So the model's own numbers are at
the top level, and what they are read with (`baselines`, `meta`) is in lists: nobody reads a table
of 30 columns.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.metrics.csv_file import to_number
from pipeline.metrics.registry import METRICS, SCORE_NAMES
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import json_digest, parse_json, write_json

DECIMALS = 4  # of every score in the reports
# The keys of `meta` that describe how the captions were scored, and what messages call them.
PROTOCOL = {
    "split_digest": "division into splits",
    "tokenizer": "tokeniser",
    "scale": "scale",
    "images": "number of images",
    "references": "number of references per image",
}
OTHER_META = ("features", "models", "excluded")


@dataclass(frozen=True)
class Baseline:
    """Other scores x100 on the same images."""

    name: str
    caption: str | None  # of a baseline that is one caption for all images
    scores: dict[str, float]


@dataclass(frozen=True)
class Reliability:
    """How well the confidences of captions fit what came true on the evaluated split."""

    reference: str  # whose median CIDEr on val is the threshold: human, or model
    threshold: float  # CIDEr, x100
    mean: float  # of the confidences
    reached: float  # the share of captions whose CIDEr reached the threshold
    calibration_error: float
    correlation: float  # Spearman's, of confidence with CIDEr by image
    log_prob_correlation: float  # that of the mean log-probability alone


@dataclass(frozen=True)
class Metrics:
    """The content of metrics.json."""

    numbers: dict[str, float]  # all top-level numbers, by key
    split: str
    untrained: bool  # whether the CNN's weights are random
    baselines: Sequence[Baseline]
    meta: dict[str, Any]
    # What `pipeline.evaluation.confidence.reliability` returned; None: no calibration.
    confidence: Reliability | None

    @property
    def protocol(self) -> dict[str, Any]:
        """How the captions were scored. Only runs with equal protocols can be compared."""
        return {"split": self.split, **{name: self.meta[key] for key, name in PROTOCOL.items()}}


def write_metrics(path: Path, metrics: dict[str, Any], reports: Sequence[Path]) -> None:
    """Write metrics, with numbers rounded so that a diff shows real changes.

    Args:
        reports: the reports that they were computed from, which the digest in `meta` covers.

    Raises:
        ValueError: a number is not finite.
    """
    rounded = json.loads(json.dumps(metrics), parse_float=lambda text: round(float(text), DECIMALS))
    write_json(path, add_digest(rounded, [report.read_bytes() for report in reports]))


def add_digest(metrics: dict[str, Any], reports: Sequence[bytes]) -> dict[str, Any]:
    """Return metrics with a digest of themselves and of the reports' bytes."""
    (meta,) = metrics["meta"]
    bare = {key: value for key, value in meta.items() if key != "digest"}
    digests = [hashlib.sha256(report).hexdigest() for report in reports]
    digest = json_digest([{**metrics, "meta": [bare]}, digests])
    return {**metrics, "meta": [{**bare, "digest": digest}]}


def require_intact(content: bytes, where: object, reports: Sequence[bytes]) -> None:
    """Raise an ArtifactError if metrics.json or a report has changed since they were written."""
    metrics = json.loads(content)
    (meta,), (expected,) = metrics["meta"], add_digest(metrics, reports)["meta"]
    if meta.get("digest") != expected["digest"]:
        raise ArtifactError(where, "or a report beside it is not what was written")


def parse_metrics(content: bytes, where: object) -> Metrics:
    """Parse metrics.json; `where` is what messages call it.

    Raises:
        ArtifactError: the file is damaged, or a number is not finite.
    """
    raw = parse_json(content, where)
    try:
        (meta,) = raw["meta"]
        keys = [key for key, value in raw.items() if key in METRICS or type(value) in (int, float)]
        return Metrics(
            numbers=_numbers(raw, keys, where),
            split=str(raw["split"]),
            untrained="backbone" in raw,
            baselines=[
                Baseline(
                    name=str(baseline["name"]),
                    caption=str(baseline["caption"]) if "caption" in baseline else None,
                    scores=_numbers(baseline, SCORE_NAMES, where),
                )
                for baseline in raw["baselines"]
            ],
            confidence=_parse_reliability(raw.get("confidence"), where),
            meta=dict(meta) | {key: meta[key] for key in (*PROTOCOL, *OTHER_META)},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ArtifactError(where, "is not a metrics file of this version") from None


def _parse_reliability(entries: Any, where: object) -> Reliability | None:
    if entries is None:
        return None
    (entry,) = entries
    reference = str(entry["reference"])
    names = [field.name for field in fields(Reliability)]
    return Reliability(reference, **_numbers(entry, names[1:], where))


def score_table(metrics: dict[str, Any]) -> str:
    """Format the model's scores beside the baselines' for a terminal, one score per line."""
    baselines = metrics["baselines"]
    names = "".join(f"{baseline['name']:>10}" for baseline in baselines)
    lines = [f"{'x100':8}{'model':>10}{names}"]
    for key in (key for key in baselines[0] if key in metrics):
        values = [metrics[key], *(baseline[key] for baseline in baselines)]
        lines.append(f"{key:8}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)


def _numbers(values: dict[str, Any], keys: Sequence[str], where: object) -> dict[str, float]:
    return {key: to_number(values[key], f"{where}, {key}") for key in keys}
