"""Real processes, killed at random moments, and what a rerun makes of what they left.

`python -m tests.campaigns.kills --count 40 --seed 1` does it by the dozen; the suite runs a few.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.runtime.checkpoint import discard_if_complete
from tests.conftest import Artifacts, make_tiny, make_world, write_params
from tests.helpers.server import serving

AFTER = "outputs lost after the end"
REPORTS = ("captions.json", "references.json", "scores.csv", "lengths.csv", "metrics.json")
SIGNALS = (*[signal.SIGKILL] * 3, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Python and torch are loaded once, and every process begins as a fork of that: a moment drawn at
# random is then one of the stage's own work, not of four seconds of imports.
FORKS = multiprocessing.get_context("forkserver")
# Ranks set this themselves. In a fork that is too late: torch reads it when it is loaded.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
FORKS.set_forkserver_preload(
    [
        "pipeline.stages.download",
        "pipeline.stages.extract",
        "pipeline.stages.scst",
        "pipeline.stages.calibrate",
        "pipeline.stages.evaluate",
    ]
)


@dataclass(frozen=True)
class Job:
    """A stage, run in a folder of its own."""

    name: str
    arguments: Callable[[Path], list[str]]
    outs: tuple[str, ...]
    persistent: bool = False  # DVC leaves the outs where they are

    def made(self, folder: Path) -> list[bytes]:
        return [(folder / name).read_bytes() for name in self.outs]


@dataclass
class Reference:
    """What comes of a job that nobody kills, and the least time that it was seen to take."""

    made: list[bytes]
    seconds: float


@contextmanager
def jobs(tiny: Artifacts, folder: Path) -> Iterator[list[Job]]:
    """The stages that take long, each some tenths of a second here; every step is saved, or the
    training's every twentieth of a second."""
    with serving(tiny.images.read_bytes()) as server:
        server.pause = 0.005
        params = write_params(
            folder / "params.yaml",
            download={
                **{"images": server.url, "images_md5": None},
                **{"text": str(tiny.text), "text_md5": None},
            },
            extract={"checkpoint_seconds": 0, "batch_size": 1, "num_workers": 1},
            train={"checkpoint_seconds": 0.05, "epochs": 4, "ema_decay": 0.9, "word_dropout": 0.1},
            scst={"checkpoint_seconds": 0, "epochs": 2, "batch_size": 5},
            evaluate={"batch_size": 1},
        )

        def job(name: str, inputs: dict[str, Path], files: Sequence[str] = (), **outs: str) -> Job:
            """`files`: what is written to the folder, where one option names them all."""
            given = {**inputs, "params": params}

            def arguments(where: Path) -> list[str]:
                paths = given | {option: where / out for option, out in outs.items()}
                paths |= {"out-dir": where} if files else {}
                return [name, *(str(word) for o, p in paths.items() for word in (f"--{o}", p))]

            names = (*outs.values(), *files)
            return Job(name, arguments, names, persistent=name == "download")

        frozen = {"images": tiny.images, "unreadable": tiny.unreadable, "backbone": tiny.backbone}
        data = {"features": tiny.features, "captions": tiny.table}
        model = {"out": "model.safetensors", "history": "history.csv"}
        yield [
            job("download", {}, images="images.zip", text="text.zip", unreadable="unreadable.csv"),
            job("extract", frozen, out="features.h5"),
            job("train", {**data, "vocabulary": tiny.vocabulary}, **model),
            job("scst", {"trained": tiny.trained, **data}, **model),
            job("calibrate", {"model": tiny.model, **data}, out="confidence.json"),
            job("evaluate", {"model": tiny.model, "confidence": tiny.confidence, **data}, REPORTS),
        ]


def start(job: Job, folder: Path) -> ForkServerProcess:
    process = FORKS.Process(target=_run, args=(job.arguments(folder), folder / "log"))
    process.start()
    log = folder / "log"
    before = log.stat().st_size if log.exists() else 0
    while process.exitcode is None and (not log.exists() or log.stat().st_size == before):
        time.sleep(0.001)
    return process


def _run(arguments: list[str], log: Path) -> None:
    from pipeline.cli import main  # here, so that the parent needs none of it

    with log.open("a") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    sys.argv = ["showtell", *arguments]
    # Before and after `main`, Python answers SIGINT with a traceback: there, die of it instead.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("begun", *arguments, flush=True)
    main()


def finish(job: Job, folder: Path) -> list[bytes]:
    """Run to the end; what was made."""
    process = start(job, folder)
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return job.made(folder)


def reference(job: Job, folder: Path) -> Reference:
    folder.mkdir()
    took = []
    for _ in range(2):  # the machine may have had something else to do, once
        _forget(job, folder)
        began = time.monotonic()
        made = finish(job, folder)
        took.append(time.monotonic() - began)
    return Reference(made, min(took))


def kill(job: Job, folder: Path, whole: Reference, rng: random.Random) -> list[str]:
    """Kill a job once or twice, perhaps tear what it wrote last; what was done to it."""
    folder.mkdir()
    done: list[str] = []
    for _ in range(rng.choice([1, 1, 2])):
        process, began = start(job, folder), time.monotonic()
        process.join(rng.uniform(0, whole.seconds))
        number, log = rng.choice(SIGNALS), folder / "log"
        if process.exitcode is None:
            with suppress(ProcessLookupError):  # it ended in between
                os.kill(process.pid or 0, number)
            process.join()
        else:  # too late: it takes less than was seen before
            whole.seconds = min(whole.seconds, time.monotonic() - began)
        if process.exitcode == 0:
            assert job.made(folder) == whole.made, log.read_text()
            # And whoever ran it may be killed before it has noted that: DVC runs it again.
            done.append(AFTER)
            _take_away(job, folder)
            break
        assert process.exitcode in (-number, 130), (process.exitcode, log.read_text())
        if process.exitcode == 130:  # it was told, and says how to go on
            *_, last = log.read_text().splitlines()
            assert last.startswith("error: interrupted; "), log.read_text()
        done.append(number.name)
        if number == signal.SIGKILL and rng.random() < 0.7 and _tear(folder, rng):
            done.append("torn write")
        _take_away(job, folder)
    return done


def _take_away(job: Job, folder: Path) -> None:
    """As DVC does before it runs a stage."""
    for name in () if job.persistent else job.outs:
        (folder / name).unlink(missing_ok=True)


def _forget(job: Job, folder: Path) -> None:
    """Outputs, and what was kept until somebody reads them."""
    for name in job.outs:
        discard_if_complete(folder / name)
        (folder / name).unlink(missing_ok=True)


def _tear(folder: Path, rng: random.Random) -> bool:
    """What the power takes with it: the end of a file is missing, or nothing but zeros."""
    left = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    unfinished = [path for path in left if ".part" in path.name or ".resume" in str(path)]
    if not unfinished:
        return False
    path = rng.choice(unfinished)
    content = path.read_bytes()
    kept = rng.randrange(len(content))
    path.write_bytes(content[:kept] + bytes(len(content) - kept) * rng.choice([0, 1]))
    return True


def leftovers(job: Job, folder: Path) -> list[str]:
    """Files that should not be there once all is done.

    A killed process cannot remove the file that it was just writing. It is not an output, and the
    next one writes another.
    """
    for name in job.outs:
        discard_if_complete(folder / name)
    names = {path.name for path in folder.iterdir()} - {*job.outs, "log"}
    return sorted(name for name in names if not name.endswith(".part"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="how many runs to kill")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"  # of semaphores that the killed could not give back
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "world").mkdir()
        tiny = make_tiny(make_world(folder / "world"))
        with jobs(tiny, folder) as all_jobs:
            whole = {job.name: reference(job, folder / job.name) for job in all_jobs}
            tally, runs, tries = Counter[str](), Counter[str](), 0
            while runs.total() < asked.count:
                job, tries = all_jobs[tries % len(all_jobs)], tries + 1
                where = folder / f"{tries}"
                done = kill(job, where, whole[job.name], rng)
                if done:
                    same = finish(job, where) == whole[job.name].made
                    assert same, f"{job.name} after {done}: other bytes; {where / 'log'}"
                    assert not leftovers(job, where), leftovers(job, where)
                    runs[job.name] += any(what != AFTER for what in done)
                    tally.update(done)
    for name, count in runs.items():
        print(f"{name:10} {count:4} runs killed, each resumed to the same bytes")
    print(", ".join(f"{name}: {count}" for name, count in tally.most_common()))


if __name__ == "__main__":
    main()
