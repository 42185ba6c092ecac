"""Workers, nodes and ranks, killed at random moments, and whether the bytes stay the same.

`python -m tests.campaigns.worker_kills --count 40 --size 2 --seed 1`: half of the runs extract on a
Ray cluster of this many nodes, on which a worker is killed or a node is lost; half train on this
many ranks, of which one is killed, and are then run again.
"""

import argparse
import logging
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, ExtractConfig
from pipeline.extraction import ray_extractor
from pipeline.stages.extract import extract
from tests.conftest import Artifacts, make_tiny, make_world, write_params
from tests.helpers.ranks import World

NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


class Extraction:
    """Extraction on a cluster of nodes, some of which are lost."""

    def __init__(self, tiny: Artifacts, folder: Path, size: int) -> None:
        self._tiny, self._folder, self._size = tiny, folder, size
        self._ready = ReadyWorkers().pids
        # The head has no cores: it survives, as the process that runs the stage does.
        self._cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        self._nodes = [self._cluster.add_node(**NODE) for _ in range(size)]
        keys = {"ray_address": self._cluster.address, "workers": size}
        params = write_params(
            folder / "ray.yaml",
            extract={"batch_size": 1, "checkpoint_seconds": 0},
            distributed={"engine": "ray", **keys},
        )
        self._config = load_params(params, ExtractConfig)
        self._distributed = load_params(params, DistributedConfig)
        self._expected = self._extract(folder / "alone.h5", None)
        ray_extractor.BLOCK_BATCHES = 1
        began = time.monotonic()
        assert self._extract(folder / "undisturbed.h5", self._distributed) == self._expected
        self._seconds = time.monotonic() - began

    def _extract(self, out: Path, distributed: DistributedConfig | None) -> bytes:
        tiny = self._tiny
        extract(tiny.images, tiny.unreadable, tiny.backbone, out, self._config, distributed)
        return out.read_bytes()

    def __call__(self, number: int, rng: random.Random) -> str:
        """Disturb one run; return how."""
        how = rng.choice([self._kill_worker, self._lose_node])
        timer = threading.Timer(rng.uniform(0, self._seconds), how, [rng])
        timer.start()
        made = self._extract(self._folder / f"{number}.h5", self._distributed)
        timer.join()
        while len(self._nodes) < self._size:
            self._nodes.append(self._cluster.add_node(**NODE))
        assert made == self._expected, (number, how)
        return how.__name__.strip("_").replace("_", " ")

    def _kill_worker(self, rng: random.Random) -> None:
        workers = [pid for pid in self._ready if Path(f"/proc/{pid}").exists()]
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)

    def _lose_node(self, rng: random.Random) -> None:
        self._cluster.remove_node(self._nodes.pop(rng.randrange(len(self._nodes))))

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


class ReadyWorkers(logging.Handler):
    """The process ids of the workers that the log says are ready."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int] = []
        logger = logging.getLogger(ray_extractor.__name__)
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.pids += map(int, re.findall(r"ready on .* \(process (\d+)\)", record.getMessage()))


class Training:
    """Training on ranks, one of which is killed."""

    def __init__(self, tiny: Artifacts, folder: Path, size: int) -> None:
        self._tiny, self._folder, self._size = tiny, folder, size
        self._expected = self._finish(folder / "undisturbed")  # the first one loads torch
        began = time.monotonic()
        assert self._finish(folder / "again") == self._expected
        self._seconds = time.monotonic() - began

    def _start(self, folder: Path) -> World:
        folder.mkdir(exist_ok=True)
        keys = {"checkpoint_seconds": 0.05, "epochs": 4, "ema_decay": 0.9}
        params = write_params(
            folder / "p.yaml", train=keys, distributed={"processes": self._size, "timeout": 5.0}
        )
        words: list[Any] = ["train", "--features", self._tiny.features, "--params", params]
        words += ["--captions", self._tiny.table, "--vocabulary", self._tiny.vocabulary]
        words += ["--out", folder / "model.safetensors", "--history", folder / "history.csv"]
        return World(words, self._size, folder)

    def _finish(self, folder: Path) -> list[bytes]:
        world = self._start(folder)
        assert world.join() == [0] * self._size, world.printed()
        return [(folder / name).read_bytes() for name in ("model.safetensors", "history.csv")]

    def __call__(self, number: int, rng: random.Random) -> str:
        """Kill a rank of one run, and run it again; return what happened."""
        folder = self._folder / f"training{number}"
        world = self._start(folder)
        time.sleep(rng.uniform(0, self._seconds))
        world.ranks[rng.randrange(self._size)].kill()
        codes = world.join()
        world.errors()  # no traceback
        assert self._finish(folder) == self._expected, (number, world.printed())
        return "killed too late" if set(codes) == {0} else "killed a rank"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="how many runs to disturb")
    parser.add_argument("--size", type=int, default=2, help="nodes, and ranks")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, tally = random.Random(asked.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "world").mkdir()
        tiny = make_tiny(make_world(folder / "world"))
        extraction = Extraction(tiny, folder, asked.size)
        runs: list[Callable[[int, random.Random], str]] = [
            extraction,
            Training(tiny, folder, asked.size),
        ]
        try:
            for number in range(asked.count):
                tally[runs[number % len(runs)](number, rng)] += 1
        finally:
            extraction.close()
    print(f"{asked.count} runs with {asked.size} nodes or ranks, all to the same bytes")
    print(", ".join(f"{name}: {count}" for name, count in tally.most_common()))


if __name__ == "__main__":
    main()
