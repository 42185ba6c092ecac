"""The demo run three times from nothing: twice as it is, once with a single core.

`make reproducible` prints which artifacts have the same bytes. It fails where two runs on the same
cores differ, and where fewer cores change anything before the training. From there on they may:
matrix products of the library below torch add in an order that goes by the number of threads.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

PICTURES = 400
LEARNED = ("train", "scst", "evaluate", "report")  # these stages and what is made of what they make


def run(workspace: Path, cores: Iterable[int]) -> dict[tuple[str, str], str]:
    """Digests of all artifacts, by stage and path."""
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
    stages = lock["stages"].items()
    return {(name, out["path"]): out["md5"] for name, stage in stages for out in stage["outs"]}


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        first, second = (run(Path(scratch, name), cores) for name in ("first", "second"))
        alone = run(Path(scratch, "alone"), cores[:1])
    print(f"{'artifact':34} {'again':6} on one core of {len(cores)}")
    differ = False
    for (stage, path), digest in first.items():
        again, one = (other[stage, path] == digest for other in (second, alone))
        free = stage in LEARNED
        differ |= not again or not (one or free)
        words = "same" if again else "OTHER", "same" if one else "other" if free else "OTHER"
        print(f"{path:34} {words[0]:6} {words[1]}")
    if differ:
        sys.exit("error: the runs made different artifacts where they may not")


if __name__ == "__main__":
    main()
