"""The command line: fast help, lazy imports, and errors as one line."""

import ast
import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import COMMANDS, MODULES, STAGES
from pipeline.entrypoint import DISCARDED, INTERRUPTED, one_line_errors
from pipeline.runtime.signals import STOP_SIGNALS
from tests.conftest import ROOT, Artifacts, command, one_line, showtell


def test_help_lists_every_command() -> None:
    result = showtell("--help")
    assert result.returncode == 0
    for name, summary in COMMANDS.items():
        assert name in result.stdout
        assert summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_same_summary_in_both_helps(name: str) -> None:
    source = (ROOT / Path(*MODULES[name].split("."))).with_suffix(".py").read_text()
    (main,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert ast.get_docstring(main) == COMMANDS[name]


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; sys.argv = ['showtell', '--help']\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "slow = {'torch', 'torchvision', 'pandas', 'nltk', 'numpy', 'h5py', 'dvc'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Caption your own images"),
        (["none.jpg"], "none.jpg does not exist"),
        (["none.jpg", "--beam-size", "3", "--beam-groups", "2"], "is not a multiple of"),
    ],
)
def test_caption_explains_its_options_without_torch(arguments: list[str], said: str) -> None:
    code = (
        f"import sys; sys.argv = ['showtell', 'caption', *{arguments}]\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "finally: print('slow:', {'torch', 'pandas', 'h5py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert said in done.stdout + done.stderr
    assert "slow: set()" in done.stdout


def test_an_unknown_command_is_reported() -> None:
    result = showtell("trian")
    assert result.returncode == 2
    assert "trian" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version() -> None:
    assert showtell("--version").stdout == "showtell 0.1.0\n"


def test_stages_run_without_dvc_installed() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'dvc': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib\n"
        f"for stage in {list(STAGES)}: importlib.import_module(f'pipeline.stages.{{stage}}')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_out_of_memory_names_the_params_to_lower(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any) -> torch.Tensor:
        return torch.empty(2**58)

    monkeypatch.setattr("pipeline.stages.train.build_decoder", too_large)
    paths = {
        "features": tiny.features,
        "captions": tiny.table,
        "vocabulary": tiny.vocabulary,
        "params": tiny.params,
        "out": tmp_path / "model",
        "history": tmp_path / "history",
    }
    options = [word for name, path in paths.items() for word in (f"--{name}", path)]
    message = one_line(command("train", *options))
    assert "this machine is out of memory; lower train.batch_size or train.hidden_size" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EFBIG, "File too large"),
            "exceeds the size limit of the shell",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk; free some"),
        (KeyboardInterrupt(), "rerun the same command to resume"),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line(
    error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    assert message in capsys.readouterr().err


@pytest.fixture
def stop_signals() -> Iterator[None]:
    """Handle stop signals as in a terminal: background jobs and their children ignore SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("stop_signals")
@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(
    "turned_into", [RuntimeError("boxed"), SystemExit(2), BaseException("panic")]
)
def test_an_interrupt_that_a_library_turns_into_an_error_stays_one(
    number: signal.Signals, turned_into: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def library() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise turned_into from None

    with pytest.raises(SystemExit) as end, one_line_errors():
        library()
    assert end.value.code == 130
    assert "error: interrupted; " in capsys.readouterr().err
    assert signal.getsignal(number) == signal.default_int_handler


@pytest.mark.usefixtures("stop_signals")
def test_an_interrupt_during_the_import_of_torch_is_one_line() -> None:
    loading = [sys.executable, "-X", "importtime", "-m", "pipeline", "train"]
    with subprocess.Popen(loading, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(" torch." in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        *_, last = process.stderr
    assert process.returncode == 130
    assert last == f"error: {INTERRUPTED}\n"


def test_an_interrupted_temporary_experiment_does_not_promise_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".dvc/tmp/exps/standalone/tmp123"
    folder.mkdir(parents=True)
    with chdir(folder), pytest.raises(SystemExit), one_line_errors():
        raise KeyboardInterrupt
    assert DISCARDED in capsys.readouterr().err
