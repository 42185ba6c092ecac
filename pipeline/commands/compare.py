"""`showtell compare`: is one run better than another, and is the difference real?

Exit codes, as of `diff`: 0 for the same or better (or no rule asked for), 1 for worse by a rule of
`--fail-on`, 2 where the two cannot be compared.
"""

import posixpath
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.comparison.format import as_json, as_markdown, as_text, markdown_text
from pipeline.comparison.revisions import WORKSPACE, repository_root, revision_of
from pipeline.comparison.run_reports import RunReports, read_results
from pipeline.comparison.verdict import Comparison, FailOn, compare, failures
from pipeline.comparison.welch import compare_groups
from pipeline.config.load import load_params
from pipeline.config.schema import CompareConfig
from pipeline.entrypoint import exit_with_error
from pipeline.runtime.errors import InputError

WORSE, INCOMPARABLE = 1, 2


def load_runs(side: str, reports: str) -> list[RunReports]:
    """The runs that a side names, comma-separated.

    Raises:
        InputError: no repository, no such revision or folder, one of them twice, or no usable
            reports in it.
    """
    names = [name for part in side.split(",") if (name := part.strip())]
    if not names:
        raise InputError(f"'{side}' names no revision")
    revisions = [revision_of(name) for name in names]
    first: dict[str, str] = {}
    for one in revisions:
        if one.identity in first:
            raise InputError(
                f"'{first[one.identity]}' and '{one.name}' are the same run; name each once"
            )
        first[one.identity] = one.name
    return [read_results(one, posixpath.normpath(reports)) for one in revisions]


def load_compare_config(params: Path | None) -> CompareConfig:
    """From the file that is named, or else params.yaml here or at the repository's root."""
    path = params or Path("params.yaml")
    return load_params(path if params or path.exists() else repository_root() / path, CompareConfig)


def compared(
    base: str, head: str, reports: str, config: CompareConfig, examples: int
) -> Comparison:
    """Two runs, or two groups of runs.

    Raises:
        InputError: they cannot be compared.
    """
    theirs, ours = (load_runs(side, reports) for side in (base, head))
    if len(theirs) == len(ours) == 1:
        return compare(theirs[0], ours[0], config, examples)
    return compare_groups(theirs, ours, config)


def main(
    base: Annotated[
        str,
        typer.Argument(
            help="A commit, branch, tag, experiment or ./folder; several, a,b,c, are a group."
        ),
    ] = "HEAD",
    head: Annotated[
        str, typer.Argument(help="What to compare it with; `workspace` is what lies here.")
    ] = WORKSPACE,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            help="Exit with 1 if head is worse: by more than compare.tolerance, or beyond noise. "
            "0 is the same or better, 2 means that they cannot be compared."
        ),
    ] = None,
    md: Annotated[bool, typer.Option("--md", help="Markdown.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Captions to show of the most improved, and of the worst.")
    ] = 3,
    reports: Annotated[str, typer.Option(help="The folder of the reports.")] = "reports",
    params: Annotated[
        Path | None, typer.Option(help="The params file; else the repository's params.yaml.")
    ] = None,
) -> None:
    """Compare two runs: is one better, and is the difference real?"""
    try:
        if md and json:
            raise InputError("--md and --json exclude each other; give one")
        config = load_compare_config(params)
        comparison = compared(base, head, reports, config, examples)
        failed = failures(comparison, fail_on or [], config.tolerance)
    except InputError as error:
        _incomparable(str(error), md)
    except OSError as error:
        _incomparable(f"{error.filename}: {error.strerror}; check the path", md)
    except Exception as error:  # a defect of ours, which must not read as 'worse'
        traceback.print_exc()
        _incomparable(f"{type(error).__name__}, as above; please report it", md)
    if json:
        print(as_json(comparison, failed, config))
    else:
        print((as_markdown if md else as_text)(comparison, failed, config.confidence))
    if failed:
        exit_with_error(f"worse: {'; '.join(failed)}", WORSE)


def _incomparable(line: str, md: bool) -> NoReturn:
    if md:  # whoever reads the summary does not see stderr
        print(f"**Cannot be compared:** {markdown_text(line)}")
    exit_with_error(line, INCOMPARABLE)
