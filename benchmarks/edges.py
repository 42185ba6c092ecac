"""What a user waits for when nothing is to be done: `--help`, and a `dvc repro` that is a no-op."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from benchmarks.timing import Row
from pipeline.commands.demo import dvc, prepare_workspace

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {"train": 40, "val": 10, "test": 10}


def rows(repeats: int) -> list[Row]:
    showtell = [sys.executable, "-m", "pipeline", "--help"]

    def ask() -> None:
        subprocess.run(showtell, cwd=ROOT, check=True, capture_output=True)

    help_seconds = statistics.median(_seconds(ask) for _ in range(repeats))
    with tempfile.TemporaryDirectory() as folder:
        ours, trivial = Path(folder, "ours"), Path(folder, "trivial")
        prepare_workspace(ROOT, ours, COUNTS)
        stages = yaml.safe_load((ours / "dvc.yaml").read_text())["stages"]
        trivial.mkdir()
        dvc(trivial, "init", "--no-scm", "--quiet")
        (trivial / "dvc.yaml").write_text(
            yaml.safe_dump(
                {"stages": {name: {"cmd": f"echo > {name}", "outs": [name]} for name in stages}}
            )
        )
        repros = [partial(dvc, workspace, "repro", "--quiet") for workspace in (ours, trivial)]
        for repro in repros:
            repro()
        mine, theirs = (
            statistics.median(times)
            for times in zip(
                *([_seconds(repro) for repro in repros] for _ in range(repeats)),
                strict=True,
            )
        )
    return [
        Row("showtell --help", help_seconds, "s", "0.5 s", help_seconds / 0.5, "at most 1"),
        Row("no-op dvc repro", mine, "s", "trivial pipeline", mine / theirs, "at most 2"),
    ]


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
