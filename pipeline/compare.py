"""`showtell compare`: is one run better than another, and is the difference real?

Exit codes, as of `diff`: 0 for the same or better (or no rule asked for), 1 for worse by a rule of
`--fail-on`, 2 where the two cannot be compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import fail, run
from pipeline.comparison.judge import Comparison, Rule, compare, failures
from pipeline.comparison.results import WORKSPACE, Results, at_revision, in_folder, read_results
from pipeline.comparison.seeds import compare_groups
from pipeline.comparison.show import as_json, as_markdown, as_text
from pipeline.config import read
from pipeline.config.compare import CompareConfig
from pipeline.errors import InputError

WORSE, INCOMPARABLE = 1, 2


def results_of(side: str, reports: str) -> list[Results]:
    """The runs that a side names, comma-separated; a name that begins with . / or ~ is a folder.

    Raises:
        InputError: no repository, no such revision or folder, or no usable reports in it.
    """
    names = [name for part in side.split(",") if (name := part.strip())]
    if not names or len(set(names)) < len(names):
        raise InputError(f"'{side}' names no revision, or one of them twice")
    return [read_results(name, reports, _reader(name)) for name in names]


def _reader(name: str) -> Callable[[str], bytes]:
    if name[0] in "./~":
        return in_folder(Path(name).expanduser())
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return at_revision(Repo.find_root(), name)
    except NotDvcRepoError:
        raise InputError("this is no DVC repository; run it in the project's folder") from None


def compared(
    base: str, head: str, reports: str, config: CompareConfig, examples: int
) -> Comparison:
    """Two runs, or two groups of runs.

    Raises:
        InputError: they cannot be compared.
    """
    theirs, ours = (results_of(side, reports) for side in (base, head))
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
        list[Rule] | None,
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
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Compare two runs: is one better, and is the difference real?"""
    try:
        config = read(params, CompareConfig)
        comparison = compared(base, head, reports, config, examples)
        failed = failures(comparison, fail_on or [], config.tolerance)
    except InputError as error:
        fail(str(error), INCOMPARABLE)
    if json:
        print(as_json(comparison, failed))
    else:
        print((as_markdown if md else as_text)(comparison, failed, config.confidence))
    if failed:
        fail(f"worse: {'; '.join(failed)}", WORSE)


if __name__ == "__main__":
    run(main)
