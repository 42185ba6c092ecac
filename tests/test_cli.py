"""The command line: quick to answer, and each stage a module of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS, MODULES, STAGES
from tests.conftest import ROOT, showtell


def test_help_names_every_command() -> None:
    result = showtell("--help")
    assert result.returncode == 0
    for name, summary in COMMANDS.items():
        assert name in result.stdout
        assert summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_the_same_words(name: str) -> None:
    source = (ROOT / Path(*MODULES[name].split("."))).with_suffix(".py").read_text()
    (main,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert ast.get_docstring(main) == COMMANDS[name]


def test_help_does_not_import_torch_nor_anything_slow() -> None:
    code = (
        "import sys; sys.argv = ['showtell', '--help']\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "slow = {'torch', 'torchvision', 'pandas', 'nltk', 'numpy', 'h5py', 'dvc'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_an_unknown_command_is_answered() -> None:
    result = showtell("trian")
    assert result.returncode == 2
    assert "trian" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version() -> None:
    assert showtell("--version").stdout == "showtell 0.1.0\n"


def test_stages_run_without_dvc_installed() -> None:
    """No module of a stage imports DVC, whatever the machine has."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'dvc': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib\n"
        f"for stage in {list(STAGES)}: importlib.import_module(f'pipeline.{{stage}}')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
