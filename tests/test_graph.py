"""dvc.yaml tells the truth about the code, and the code keeps to its layers."""

import ast
import re
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import MODULES, STAGES
from pipeline.config.schema import GROUPS
from pipeline.config.types import Config
from pipeline.decoders.registry import DECODERS
from pipeline.runtime.code import module_imports, stage_code
from pipeline.stages.report import PARAM_GROUPS
from tests.conftest import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
CODE = sorted((ROOT / "pipeline").rglob("*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_what_the_stage_imports(stage: str) -> None:
    """Its module and whole packages; checkpoints go by the same list (`test_resume.py`)."""
    listed = [dep for dep in GRAPH["stages"][stage]["deps"] if dep.startswith("pipeline/")]
    assert listed == list(stage_code(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_else_is_imported_when_the_stage_runs(stage: str) -> None:
    """Decoders are imported by name, when one is built."""
    code = (
        f"import sys, pipeline.stages.{stage}\n"
        "if 'pipeline.decoders.decoder' in sys.modules:\n"
        "    from importlib import import_module\n"
        "    from pipeline.decoders.registry import DECODERS\n"
        "    for spec in DECODERS.values(): import_module(f'pipeline.decoders.{spec.module}')\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('pipeline.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = {Path(file).relative_to(ROOT) for file in done.stdout.split()}
    allowed = {*stage_code(stage), "pipeline/config"}
    outside = {file for file in loaded if not {str(file), str(file.parent)} & allowed}
    # `params.yaml` is checked as a whole, which needs the names of decoders and metrics.
    names = {Path("pipeline/decoders/registry.py"), Path("pipeline/metrics/registry.py")}
    packages = {file for file in outside if file.name == "__init__.py"}
    assert outside <= names | packages


@pytest.mark.parametrize("stage", ["extract", "train", "scst"])
def test_the_long_stages_import_every_module_of_their_packages(stage: str) -> None:
    """So whole packages as deps rerun them for no edit that a list of files would not."""
    imported, waiting = set[Path](), [ROOT / f"pipeline/stages/{stage}.py"]
    if stage != "extract":  # the registry imports them by name
        waiting += {ROOT / f"pipeline/decoders/{spec.module}.py" for spec in DECODERS.values()}
    while waiting:
        module = waiting.pop()
        if module not in imported:
            imported.add(module)
            waiting += module_imports(module)
    for package in stage_code(stage)[1:]:
        modules = {path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"}
        assert modules <= imported, sorted(modules - imported)


def test_schemas_only_check_so_that_no_stage_depends_on_their_code() -> None:
    """No defaults: what a stage is given are the values of params.yaml, which DVC tracks."""
    for config in GROUPS.values():
        assert issubclass(config, Config)
        assert all(field.is_required() for field in config.model_fields.values())


def test_packages_never_import_in_circles() -> None:
    def package(path: Path) -> str:
        return path.parent.name if path.parent != ROOT / "pipeline" else path.stem

    edges: dict[str, set[str]] = {}
    for path in CODE:
        own = edges.setdefault(package(path), set())
        own |= {package(other) for other in _imports(path)} - {package(path)}
    for start in edges:
        seen, waiting = set[str](), list(edges[start])
        while waiting:
            name = waiting.pop()
            assert name != start, f"{start} imports itself by way of others: {sorted(seen)}"
            if name not in seen:
                seen.add(name)
                waiting += edges.get(name, ())


def _imports(path: Path) -> list[Path]:
    """With those of `config`, which stages do not depend on."""
    found = module_imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if str(node.module).startswith("pipeline.config."):
                found.append((ROOT / str(node.module).replace(".", "/")).with_suffix(".py"))
    return found


def paths_of(stage: str, kind: str) -> set[str]:
    entries: list[Any] = GRAPH["stages"][stage].get(kind, [])
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@pytest.mark.parametrize("stage", STAGES)
def test_the_default_paths_of_a_command_are_those_of_dvc_yaml(stage: str) -> None:
    assert GRAPH["stages"][stage]["cmd"] == f"python -m pipeline {stage}"
    main = import_module(MODULES[stage]).main
    hints = typing.get_type_hints(main)
    defaults: dict[str, Path] = {}
    for name, default in zip(hints, main.__defaults__, strict=False):
        for path in default if isinstance(default, list) else [default]:
            if isinstance(path, Path) and name != "params":
                defaults[name] = path
    declared = {dep for dep in paths_of(stage, "deps") if not dep.startswith("pipeline/")}
    declared |= paths_of(stage, "outs") | paths_of(stage, "plots")
    for name, path in sorted(defaults.items(), key=lambda item: item[0].endswith("_dir")):
        if name.endswith("_dir"):
            own = {one for one in declared if Path(one).parent == path}
        elif name == "captions":  # and the info beside it
            own = {str(path), str(path.with_suffix(".json"))}
        else:
            own = {str(path)}
        assert own, name
        assert own <= declared, name
        declared -= own
    assert not declared


WITHOUT_PARAMS = ("calibrate", "neighbors")  # of their own


def test_stages_stand_in_order_each_with_its_params_and_a_description() -> None:
    assert list(GRAPH["stages"]) == list(STAGES)
    groups = [*STAGES, "compare", "distributed"]
    assert [name for name in groups if name not in WITHOUT_PARAMS] == list(GROUPS)
    for name, stage in GRAPH["stages"].items():
        assert stage["desc"]
        if name != "report":
            # The calibration is that of the evaluation's search.
            groups = {"calibrate": ["evaluate"], "neighbors": []}.get(name, [name])
            assert stage.get("params", []) == groups


def test_the_report_shows_all_params_so_any_change_of_one_reruns_it() -> None:
    assert (
        GRAPH["stages"]["report"]["params"]
        == [config.group() for config in PARAM_GROUPS]
        == [name for name in STAGES if name not in WITHOUT_PARAMS]
    )


def test_only_commands_and_the_command_line_import_stages() -> None:
    """Nothing reaches back up: not from one stage to another, nor from what stages share."""
    stages = set((ROOT / "pipeline/stages").glob("*.py"))
    for path in CODE:
        if path.parent.name != "commands" and path.name != "cli.py":
            assert not set(module_imports(path)) & stages, path


def test_dvc_yaml_is_read_on_one_screen_and_a_half() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 120


def test_files_fit_in_one_reading() -> None:
    long = {str(p): n for p in CODE if (n := len(p.read_text(encoding="utf-8").splitlines())) > 260}
    assert not long


def test_the_training_stages_are_load_build_fit() -> None:
    for stage in ("train", "scst"):
        text = (ROOT / f"pipeline/stages/{stage}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) < 110


def test_the_map_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^pipeline/\n(.*?)^benchmarks/", text, re.MULTILINE | re.DOTALL)
    top, *parts = re.split(r"^  (\w+)/", tree, flags=re.MULTILINE)
    modules = {"pipeline": top} | dict(zip(parts[::2], parts[1::2], strict=True))
    for path in CODE:
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.name}\b", modules[path.parent.name]), path


def test_the_params_file_has_every_group_with_a_comment() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for group in GROUPS:
        above = text.split(f"\n{group}:")[0].splitlines()[-1]
        assert above.startswith("#"), group
