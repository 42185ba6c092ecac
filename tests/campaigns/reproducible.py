"""The demo run from nothing again and again: on other cores, with other threads.

`make reproducible` prints which artifacts have the same bytes, and fails where any differ that
docs/reliability.md promises to be the same.
"""

import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from pipeline.commands.demo import dvc, prepare_workspace
from tests.conftest import ROOT

COUNTS = {"train": 360, "val": 20, "test": 20}

Digests = dict[str, str]  # of all artifacts, by path


def run(workspace: Path, cores: Collection[int], threads: int, precision: str = "auto") -> Digests:
    """All stages, those that nothing has changed for excepted."""
    prepare_workspace(ROOT, workspace, COUNTS)
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["train"].update(precision=precision, ema_decay=0.9, word_dropout=0.1)
    params["scst"].update(precision=precision, epochs=1, batch_size=20)
    path.write_text(yaml.safe_dump(params))
    with _confined(cores, threads):
        dvc(workspace, "repro", "--quiet")
    lock = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    return {out["path"]: out["md5"] for out in outs}


@contextmanager
def _confined(cores: Collection[int], threads: int) -> Iterator[None]:
    """What the stages start under."""
    before, given = os.sched_getaffinity(0), os.environ.get("OMP_NUM_THREADS")
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        del os.environ["OMP_NUM_THREADS"]
        if given is not None:
            os.environ["OMP_NUM_THREADS"] = given


def main() -> None:
    cores, threads = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    other = 1 if threads > 1 else 2
    with tempfile.TemporaryDirectory() as scratch:
        first, second, third, fourth = (Path(scratch, name) for name in "abcd")
        whole = run(first, cores, threads)
        exact = run(first, cores, threads, "float32")
        columns = {
            "again": (whole, run(second, cores, threads)),
            "on one core": (whole, run(third, cores[:1], threads)),
            "float32": (exact, run(fourth, cores, other, "float32")),
        }
    print(f"{len(cores)} cores, {threads} threads; float32: with {other}")
    print(f"{'artifact':34}" + "".join(f" {name:12}" for name in columns))
    for path in whole:
        same = (left[path] == right[path] for left, right in columns.values())
        print(f"{path:34}" + "".join(f" {'same' if one else 'OTHER':12}" for one in same))
    if any(left != right for left, right in columns.values()):
        sys.exit("error: the runs made different artifacts")


if __name__ == "__main__":
    main()
