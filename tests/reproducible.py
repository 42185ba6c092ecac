"""The demo run three times from nothing: twice as it is, once with a single core.

`make reproducible` prints which artifacts have the same bytes, and fails where any differs.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

PICTURES = 400


def run(workspace: Path, cores: Iterable[int]) -> dict[str, str]:
    """Digests of all artifacts, by path."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what threads and workers go by
    try:
        command = ["demo", "--workspace", str(workspace), "--pictures", str(PICTURES)]
        subprocess.run(
            [sys.executable, "-m", "pipeline", *command], check=True, stdout=subprocess.DEVNULL
        )
    finally:
        os.sched_setaffinity(0, before)
    lock = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        first, second = (run(Path(scratch, name), cores) for name in ("first", "second"))
        alone = run(Path(scratch, "alone"), cores[:1])
    print(f"{'artifact':34} {'again':6} on one core of {len(cores)}")
    for path, digest in first.items():
        again, one = ("same" if other[path] == digest else "OTHER" for other in (second, alone))
        print(f"{path:34} {again:6} {one}")
    if not first == second == alone:
        sys.exit("error: the runs made different artifacts")


if __name__ == "__main__":
    main()
