"""The reports of a run at a revision, and the params that produced them.

Only small files are read, and all of them are in git: no features or models are fetched.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.comparison.revisions import AbsentError, Revision
from pipeline.config.load import parse_yaml
from pipeline.evaluation.reports import Evaluation, ReportFiles, Source, parse_evaluation
from pipeline.runtime.errors import InputError

STAGE = "evaluate"  # the stage in dvc.lock whose outs the reports are


@dataclass(frozen=True)
class RunReports:
    """A run, as its reports describe it."""

    name: str  # the revision, as the user named it
    revision: str  # the commit, or the folder
    evaluation: Evaluation
    params: dict[str, Any]  # by dotted name
    notes: tuple[str, ...]  # caveats to show
    stale: str | None  # why the reports do not belong to the params beside them

    @property
    def metrics(self) -> dict[str, float]:
        return self.evaluation.metrics.numbers

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that must be equal in runs that are compared, by what messages call it."""
        references = json.dumps(self.evaluation.references, sort_keys=True).encode()
        return {
            **self.evaluation.metrics.protocol,
            "references": hashlib.sha256(references).hexdigest()[:16],
            "baselines": [asdict(baseline) for baseline in self.evaluation.metrics.baselines],
        }


def read_run(revision: Revision, reports: str) -> RunReports:
    """Read the reports and params of a run.

    Args:
        reports: the folder of the reports, from the repository's root.

    Raises:
        InputError: a file is missing or damaged, or a report is not the one that dvc.lock records.
    """
    name, stale = revision.name, None
    paths = [path.as_posix() for path in ReportFiles.in_folder(Path(reports)).evaluation]
    content = {path: revision.read(path) for path in paths}
    current = _flatten(_read_yaml(revision, "params.yaml"))
    try:
        lock = _read_yaml(revision, "dvc.lock")
    except AbsentError:
        params = current
        notes = [f"{name}: no dvc.lock, so the params are those of params.yaml, unverified"]
    else:
        params, notes = _check_lock(lock, content, name), []
        if changed := [key for key, value in params.items() if current.get(key) != value]:
            keys = ", ".join(changed)
            stale = f"params.yaml of {name} has changed since the run ({keys}): 'dvc repro'"
    sources = [Source(report, f"{path} of {name}") for path, report in content.items()]
    evaluation = parse_evaluation(*sources)
    return RunReports(name, revision.identity, evaluation, params, tuple(notes), stale)


def _read_yaml(revision: Revision, path: str) -> dict[str, Any]:
    content = revision.read(path)
    try:
        return dict(parse_yaml(content.decode()))
    except (ValueError, TypeError, yaml.YAMLError):
        raise InputError(
            f"{path} of {revision.name} is damaged (a merge?); 'dvc repro' writes dvc.lock again"
        ) from None


def _check_lock(lock: dict[str, Any], content: dict[str, bytes], revision: str) -> dict[str, Any]:
    """Check that dvc.lock records these reports, and return the params that it records.

    The params of `report` are left out: it repeats all groups, as they were when its page was
    written.
    """
    groups: dict[str, Any] = {}
    try:
        stages = lock.get("stages", {})
        for stage in (stages[name] for name in stages if name != "report"):
            for values in stage.get("params", {}).values():
                groups.update(values)
        outs = stages.get(STAGE, {}).get("outs", ())
        recorded = {out["path"]: out.get("md5") for out in outs}
        params = _flatten(groups)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"dvc.lock of {revision} is damaged; run 'dvc repro' there") from None
    for path, report in content.items():
        if recorded.get(path) != hashlib.md5(report, usedforsecurity=False).hexdigest():
            raise InputError(
                f"{path} of {revision} is not the one that dvc.lock records there; run 'dvc repro' "
                "and keep both together"
            )
    return params


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
