"""`showtell compare`: is one run better than another, and is the difference real?

Exit codes, like those of `diff`: 0 if head is the same or better (or without `--fail-on`), 1 if it
is worse by a rule of `--fail-on`, 2 if the two cannot be compared.
"""

import posixpath
import traceback
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.comparison.format import as_json, as_text, markdown_text
from pipeline.comparison.revisions import WORKSPACE, repository_root, resolve_revision
from pipeline.comparison.run_reports import RunReports, read_run
from pipeline.comparison.verdict import Comparison, MetricChange, compare
from pipeline.config.load import load_params
from pipeline.config.schema import CompareConfig
from pipeline.entrypoint import exit_with_error
from pipeline.runtime.errors import InputError

WORSE, INCOMPARABLE = 1, 2


class FailOn(StrEnum):
    """What counts as worse: a loss beyond a tolerance, or beyond noise."""

    TOLERANCE = "tolerance"
    NOISE = "noise"


def load_runs(side: str, reports: str) -> list[RunReports]:
    """Read the runs of a side, which names one or several separated by commas.

    Raises:
        InputError: there is no repository, revision or folder of that name, a run is named twice,
            or its reports cannot be used.
    """
    names = [name for part in side.split(",") if (name := part.strip())]
    if not names:
        raise InputError(f"'{side}' names no revision")
    revisions = [resolve_revision(name) for name in names]
    seen: dict[str, str] = {}  # names by identity
    for revision in revisions:
        if revision.identity in seen:
            first = seen[revision.identity]
            raise InputError(f"'{first}' and '{revision.name}' are the same run; name each once")
        seen[revision.identity] = revision.name
    return [read_run(revision, posixpath.normpath(reports)) for revision in revisions]


def load_compare_config(params: Path | None) -> CompareConfig:
    """Load the given params file, or params.yaml here or at the repository's root."""
    path = params or Path("params.yaml")
    if params or path.exists():
        return load_params(path, CompareConfig)
    try:
        return load_params(repository_root() / path, CompareConfig)
    except InputError:
        raise InputError(
            "there is no params.yaml here, with the group compare; run it in the project's folder, "
            "or name the file with --params"
        ) from None


def failures(
    comparison: Comparison, rules: Sequence[FailOn], tolerance: Mapping[str, float]
) -> list[str]:
    """Return what is worse by these rules, a line for each metric.

    `tolerance`: a metric lost more than its tolerance. `noise`: the whole interval of a tested
    metric is below no change; metrics that are never tested, such as `unique_captions`, are held
    to their tolerance.

    Raises:
        InputError: the rules cannot be applied: a run is stale, head lacks a metric that base has,
            a metric with a tolerance is missing, or nothing was tested.
    """
    if not rules:
        return []
    if comparison.stale:
        raise InputError(f"cannot compare: {comparison.stale[0]}")
    if missing := [row.metric for row in comparison.changes if row.verdict == "missing"]:
        raise InputError(
            f"cannot compare: {comparison.head} lacks {', '.join(missing)}, which "
            f"{comparison.base} has; evaluate again"
        )
    if FailOn.NOISE in rules and all(row.difference is None for row in comparison.changes):
        raise InputError(
            "cannot compare beyond noise: nothing could be tested; evaluate on more images, or "
            "give each side two or more runs with different seeds"
        )
    lines, changes = [], {row.metric: row for row in comparison.changes}
    for metric, allowed in tolerance.items():
        change = changes.get(metric) or MetricChange(metric, None, None, None)
        if change.change is None:
            side = comparison.head if change.head is None else comparison.base
            raise InputError(
                f"cannot compare: {metric} is missing in {side}, and compare.tolerance has a rule "
                "for it; evaluate again, or remove the rule"
            )
        by_tolerance = FailOn.TOLERANCE in rules or change.difference is None
        if FailOn.NOISE in rules and change.verdict == "worse":
            lines.append(f"{metric} {-change.gain:.2f} worse, beyond chance")
        elif by_tolerance and -change.gain > allowed:
            lines.append(f"{metric} {-change.gain:.2f} worse, more than {allowed:g}")
    return lines


def main(
    base: Annotated[
        str,
        typer.Argument(
            help="A commit, branch, tag, experiment or ./folder, or a group of runs: a,b,c."
        ),
    ] = "HEAD",
    head: Annotated[
        str, typer.Argument(help="The run to compare with it; `workspace` is this folder's.")
    ] = WORKSPACE,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            help="Exit with 1 if head is worse by more than compare.tolerance, or beyond noise; "
            "with 0 if it is the same or better, and with 2 if they cannot be compared."
        ),
    ] = None,
    md: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    examples: Annotated[
        int,
        typer.Option(
            min=0, help="How many captions to show, of the most improved and of the worst."
        ),
    ] = 3,
    reports: Annotated[str, typer.Option(help="The folder of the reports.")] = "reports",
    params: Annotated[
        Path | None, typer.Option(help="The params file; by default the repository's params.yaml.")
    ] = None,
) -> None:
    """Compare two runs: is one better, and is the difference real?"""
    try:
        if md and json:
            raise InputError("--md and --json exclude each other; give one")
        config = load_compare_config(params)
        base_runs, head_runs = (load_runs(side, reports) for side in (base, head))
        comparison = compare(base_runs, head_runs, config, examples)
        failed = failures(comparison, fail_on or [], config.tolerance)
    except InputError as error:
        _incomparable(str(error), md)
    except OSError as error:
        _incomparable(f"{error.filename}: {error.strerror}; check the path", md)
    except Exception as error:  # a bug, which must not be reported as 'worse'
        traceback.print_exc()
        _incomparable(f"{type(error).__name__} (see above); please report this bug", md)
    if json:
        print(as_json(comparison, failed, config))
    else:
        print(as_text(comparison, failed, config.confidence, markdown=md))
    if failed:
        exit_with_error(f"worse: {'; '.join(failed)}", WORSE)


def _incomparable(line: str, md: bool) -> NoReturn:
    if md:  # a step summary does not show stderr
        print(f"**Cannot be compared:** {markdown_text(line)}")
    exit_with_error(line, INCOMPARABLE)
