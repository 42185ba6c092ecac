"""A repository for experiments, whose stages note what they find and have no special power.

They run under a stand-in for `python` that writes down what each of them finds in its folder, and
takes away root's power to write to files that are read-only.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.repository import Checkout, Repository
from tests.helpers.server import Behaviour

DEAR = ("data/images.zip", "features/features.h5")

# CAP_DAC_OVERRIDE (1) is what lets root open a read-only file for writing: Linux only, and a
# refusal means that it was not there to begin with.
STAND_IN = f"""#!{sys.executable}
import ctypes, os, sys
stage = sys.argv[3] if sys.argv[1:3] == ["-m", "pipeline"] else ""
if stage:
    with open(os.environ["SEEN"], "a") as seen:
        for name in {DEAR}:
            if os.path.exists(name):
                state = os.stat(name)
                line = (stage, name, state.st_dev, state.st_ino, oct(state.st_mode & 0o777))
                print(os.getcwd(), *line, sep="|", file=seen)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Found:
    """A file as a stage found it."""

    folder: Path
    stage: str
    name: str
    inode: tuple[int, int]
    mode: str


@dataclass
class Laboratory:
    """A repository with a finished baseline, its archive's server, and what its stages note."""

    repository: Repository
    server: Behaviour
    seen: Path

    def forget(self) -> None:
        self.seen.write_text("")

    def found(self) -> list[Found]:
        lines = (line.split("|") for line in self.seen.read_text().splitlines())
        return [
            Found(Path(folder), stage, name, (int(device), int(inode)), mode)
            for folder, stage, name, device, inode, mode in lines
        ]

    def read(self, experiment: str, name: str) -> Any:
        """A YAML file as an experiment has left it."""
        refs = self.repository.run("git", "for-each-ref", "--format=%(refname)", "refs/exps")
        (ref,) = (ref for ref in refs.splitlines() if ref.endswith(f"/{experiment}"))
        return yaml.safe_load(self.repository.run("git", "show", f"{ref}:{name}"))

    def cached_model(self, experiment: str) -> Path:
        """Where the cache has, or had, an experiment's model."""
        (out,) = self.read(experiment, "dvc.lock")["stages"]["scst"]["outs"][:1]
        assert out["path"] == "models/captioner.safetensors"
        digest = out["md5"]
        return self.repository.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def start_workers(repository: Checkout, jobs: int) -> str:
    """`dvc queue start`, and what it printed: to a file, since its workers keep a pipe open."""
    printed = repository.folder.parent / "started"
    with printed.open("w") as out:
        subprocess.run(
            ["dvc", "queue", "start", "--jobs", str(jobs)],
            cwd=repository.folder,
            env=repository.environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return printed.read_text()


def finish(repository: Checkout, experiments: int) -> dict[str, str]:
    """Wait until the workers have run this many experiments; return the state of each."""
    deadline = time.monotonic() + 900
    results = repository.folder / ".dvc/tmp/exps/celery/result"
    # Asking DVC all the time would take one of two cores away from the workers.
    while len(list(results.glob("celery-task-meta-*"))) < experiments:
        assert time.monotonic() < deadline, repository.run("dvc", "queue", "status")
        time.sleep(0.1)
    status = repository.run("dvc", "queue", "status")
    return dict(re.findall(r"^\w{7}\s+(\S+)\s.*\s(\w+)\s*$", status, re.MULTILINE))
