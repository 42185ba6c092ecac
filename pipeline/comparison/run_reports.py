"""What a run left in a revision: its reports, and the params that made them, through DVC.

Only small files are read, and all of them are in git: neither features nor models are fetched.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipeline.comparison.revisions import AbsentError, Revision
from pipeline.config.load import parse_yaml
from pipeline.evaluation.reports import is_intact
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.registry import MEAN_NAMES, SCORE_NAMES
from pipeline.runtime.errors import InputError

STAGE = "evaluate"  # of dvc.lock, whose outs the reports are


@dataclass(frozen=True)
class RunReports:
    """One run as its reports tell it."""

    name: str  # the revision, as the user named it
    revision: str  # the commit, or the folder
    metrics: dict[str, float]  # the numbers that stand at the top of metrics.json
    terms: dict[str, Any]  # what they were measured by; only the like can be compared
    params: dict[str, Any]  # that made them, by dotted name
    captions: dict[str, str]  # by image
    references: dict[str, list[str]]
    scores: pd.DataFrame  # a row an image, by image
    notes: tuple[str, ...]  # what the reader must know
    stale: str | None  # why the reports are not of the params that lie beside them
    intact: bool  # whether the reports are, together, what was written


def read_results(revision: Revision, reports: str) -> RunReports:
    """
    Args:
        reports: the folder of the reports, from the repository's root.

    Raises:
        InputError: a report is absent, damaged, or not of the run that dvc.lock records.
    """
    try:
        results = _read_results(revision, reports)
        _check_each_other(results, reports)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"the reports or dvc.lock of {revision.name} lack something that this version writes; "
            "run evaluate again there ('dvc repro')"
        ) from None
    return results


def _read_results(where: Revision, reports: str) -> RunReports:
    revision, read, stale = where.name, where.read, None
    names = ("metrics.json", "captions.json", "references.json", "scores.csv")
    raw = {name: read(f"{reports}/{name}") for name in names}
    asked = _flat(_yaml(read("params.yaml"), "params.yaml", revision))
    try:
        lock = _yaml(read("dvc.lock"), "dvc.lock", revision)
    except AbsentError:
        params = asked
        notes = [f"{revision}: no dvc.lock, so the params are those of params.yaml, unproven"]
    else:
        params, notes = _params_of(lock), []
        _check_digests(lock, {f"{reports}/{name}": raw[name] for name in names}, revision)
        if changed := [key for key, value in params.items() if asked.get(key) != value]:
            keys = ", ".join(changed)
            stale = f"params.yaml of {revision} has changed since the run ({keys}): 'dvc repro'"
    metrics, captions, references = (
        _parsed(json.loads, raw[name], f"{reports}/{name}", revision)
        for name in ("metrics.json", "captions.json", "references.json")
    )
    (meta,) = metrics["meta"]
    return RunReports(
        *(revision, where.identity),
        _numbers(metrics, f"{reports}/metrics.json of {revision}"),
        _terms(metrics, meta, references),
        params,
        {one["image_id"]: str(one["caption"]) for one in captions},
        references,
        _scores(raw["scores.csv"], f"{reports}/scores.csv", revision),
        *(tuple(notes), stale),
        is_intact(metrics, [raw[name] for name in names[1:]]),
    )


def _yaml(content: bytes, path: str, revision: str) -> dict[str, Any]:
    return dict(_parsed(lambda raw: parse_yaml(raw.decode()), content, path, revision))


def _parsed(parse: Callable[[bytes], Any], content: bytes, path: str, revision: str) -> Any:
    try:
        return parse(content)
    except (ValueError, yaml.YAMLError):
        raise InputError(
            f"{path} of {revision} is damaged (a merge?); 'dvc repro' writes it anew"
        ) from None


def _params_of(lock: dict[str, Any]) -> dict[str, Any]:
    """The params of all stages as they were when the stages ran.

    Not those of `report`: it repeats all groups, as they were when its page was made.
    """
    groups: dict[str, Any] = {}
    stages = lock.get("stages", {})
    for stage in (stages[name] for name in stages if name != "report"):
        for values in stage.get("params", {}).values():
            groups.update(values)
    return _flat(groups)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def _check_digests(lock: dict[str, Any], files: dict[str, bytes], revision: str) -> None:
    recorded = {
        one["path"]: one.get("md5") for one in lock.get("stages", {}).get(STAGE, {}).get("outs", ())
    }
    for path, content in files.items():
        if recorded.get(path) != hashlib.md5(content, usedforsecurity=False).hexdigest():
            raise InputError(
                f"{path} of {revision} is not the one that dvc.lock records there; run 'dvc repro' "
                "and keep both together"
            )


def _numbers(metrics: dict[str, Any], where: str) -> dict[str, float]:
    numbers = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in SCORE_NAMES:
        if name in metrics and name not in numbers:
            raise InputError(f"{where}: {name} is {metrics[name]!r}, no number; evaluate again")
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise InputError(f"{where}: {name} is {value}, which compares with nothing")
    return numbers


def _terms(metrics: dict[str, Any], meta: dict[str, Any], references: Any) -> dict[str, Any]:
    """Everything that must be alike, by what to call it."""
    text = json.dumps(references, sort_keys=True).encode()
    return {
        "split": metrics["split"],
        "division into splits": meta["split_digest"],
        "tokeniser": meta["tokenizer"],
        "scale": meta["scale"],
        "number of images": meta["images"],
        "number of references an image": meta["references"],
        "references": hashlib.sha256(text).hexdigest()[:16],
        "baselines": metrics["baselines"],
    }


def _scores(content: bytes, path: str, revision: str) -> pd.DataFrame:
    table = _parsed(
        lambda raw: pd.read_csv(io.BytesIO(raw), dtype={"image_id": str}, keep_default_na=False),
        *(content, path, revision),
    )
    lacking = [
        name for name in ("image_id", *COUNT_NAMES, *MEAN_NAMES) if name not in table.columns
    ]
    if lacking:
        raise InputError(
            f"{path} of {revision} has no column '{lacking[0]}': it was written by an earlier "
            "version; run evaluate again there ('dvc repro')"
        )
    numbers = table[[*COUNT_NAMES, *MEAN_NAMES]].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(numbers).all(axis=None):
        bad = table["image_id"][~np.isfinite(numbers).all(axis=1)].iloc[0]
        raise InputError(f"{path} of {revision}: a score of {bad} is no number; evaluate again")
    if table["image_id"].duplicated().any():
        raise InputError(f"{path} of {revision} has two rows of one image; run evaluate again")
    return table.set_index("image_id")


def _check_each_other(results: RunReports, reports: str) -> None:
    """The reports of one run tell the same story."""
    images = [set(results.captions), set(results.references), set(results.scores.index)]
    if not results.intact or images[0] != images[1] or images[0] != images[2]:
        raise InputError(
            f"the files in {reports}/ of {results.name} are not of one run; 'dvc repro' writes "
            "them anew"
        )
