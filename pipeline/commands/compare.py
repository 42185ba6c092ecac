"""`showtell compare`: is one run better than another, and is the difference real?

Exit codes, like those of `diff`: 0 if head is the same or better (or without `--fail-on`), 1 if it
is worse by a rule of `--fail-on`, 2 if the two cannot be compared.
"""

import posixpath
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.comparison.format import as_json, as_markdown, as_text, markdown_text
from pipeline.comparison.revisions import WORKSPACE, repository_root, resolve_revision
from pipeline.comparison.run_reports import RunReports, read_run
from pipeline.comparison.verdict import Comparison, FailOn, compare, failures
from pipeline.comparison.welch import compare_groups
from pipeline.config.load import load_params
from pipeline.config.schema import CompareConfig
from pipeline.entrypoint import exit_with_error
from pipeline.runtime.errors import InputError

WORSE, INCOMPARABLE = 1, 2


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
    return load_params(path if params or path.exists() else repository_root() / path, CompareConfig)


def compare_sides(
    base: str, head: str, reports: str, config: CompareConfig, examples: int
) -> Comparison:
    """Compare two runs, or two groups of runs.

    Raises:
        InputError: they cannot be compared.
    """
    base_runs, head_runs = load_runs(base, reports), load_runs(head, reports)
    if len(base_runs) == len(head_runs) == 1:
        return compare(base_runs[0], head_runs[0], config, examples)
    return compare_groups(base_runs, head_runs, config)


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
        comparison = compare_sides(base, head, reports, config, examples)
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
        print((as_markdown if md else as_text)(comparison, failed, config.confidence))
    if failed:
        exit_with_error(f"worse: {'; '.join(failed)}", WORSE)


def _incomparable(line: str, md: bool) -> NoReturn:
    if md:  # a step summary does not show stderr
        print(f"**Cannot be compared:** {markdown_text(line)}")
    exit_with_error(line, INCOMPARABLE)
