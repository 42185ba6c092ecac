"""dvc.yaml tells the truth about the code, and the code keeps to its layers."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import STAGES
from pipeline.config import GROUPS
from pipeline.stages.report import PARAM_GROUPS
from tests.conftest import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
CODE = sorted((ROOT / "pipeline").rglob("*.py"))


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's own files that a module imports, wherever in it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] != "pipeline":
                continue
            for end in range(1, len(parts) + 1):  # importing a.b.c runs a, a.b and a.b.c
                base = ROOT.joinpath(*parts[:end])
                found |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()}
    return frozenset(found)


def all_imports(path: Path) -> set[Path]:
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting.extend(imported(file))
    return seen | {data for file in seen for data in data_beside(file)}


def data_beside(module: Path) -> set[Path]:
    """What a package holds besides modules, and its modules read: templates, style sheets."""
    if module.parent == ROOT / "pipeline":
        return set()
    return {p for p in module.parent.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}


def has_code(path: Path) -> bool:
    """Whether a package's `__init__.py` is more than its docstring and the version."""
    return len(ast.parse(path.read_text(encoding="utf-8")).body) > 2


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_exactly_what_the_stage_imports(stage: str) -> None:
    needed = {
        str(path.relative_to(ROOT))
        for path in all_imports(ROOT / f"pipeline/{stage}.py")
        if path.name != "__init__.py" or has_code(path)
    }
    listed = {dep for dep in GRAPH["stages"][stage]["deps"] if dep.startswith("pipeline/")}
    assert listed == needed


def paths_of(stage: str, kind: str) -> set[str]:
    entries: list[Any] = GRAPH["stages"][stage].get(kind, [])
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_declared(stage: str) -> None:
    words = GRAPH["stages"][stage]["cmd"].split()
    assert words[:4] == ["python", "-m", "pipeline", stage]
    paths = {word for word in words[4:] if not word.startswith("--")}
    data = {dep for dep in paths_of(stage, "deps") if not dep.startswith("pipeline/")}
    assert paths == data | paths_of(stage, "outs") | paths_of(stage, "plots")


def test_stages_stand_in_order_each_with_its_params_and_a_description() -> None:
    assert [*GRAPH["stages"], "compare"] == [*STAGES, "compare"] == list(GROUPS)
    for name, stage in GRAPH["stages"].items():
        assert stage["desc"]
        if name != "report":
            assert stage["params"] == [name]


def test_the_report_shows_all_params_so_any_change_of_one_makes_it_anew() -> None:
    assert (
        GRAPH["stages"]["report"]["params"]
        == [config.group for config in PARAM_GROUPS]
        == list(STAGES)
    )


def test_stages_never_import_each_other() -> None:
    stages = {ROOT / f"pipeline/{stage}.py" for stage in STAGES}
    for stage in stages:
        assert all_imports(stage) & stages == {stage}


def test_what_stages_share_does_not_import_them() -> None:
    top = {path for path in CODE if path.parent == ROOT / "pipeline"}
    shared = {
        ROOT / f"pipeline/{n}.py"
        for n in ("__init__", "errors", "progress", "device", "cuda_graphs")
    }
    for path in CODE:
        if path.parent.name in ("config", "store", "cnn", "model", "scoring", "page"):
            assert not imported(path) & (top - shared), path


def test_files_fit_in_one_reading() -> None:
    long = {str(p): n for p in CODE if (n := len(p.read_text(encoding="utf-8").splitlines())) > 260}
    assert not long


def test_the_params_file_has_every_group_with_a_comment() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for group in GROUPS:
        above = text.split(f"\n{group}:")[0].splitlines()[-1]
        assert above.startswith("#"), group
