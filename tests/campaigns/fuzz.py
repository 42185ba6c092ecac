"""Valid files, changed at random, to the parsers that read them: each says one line or reads on.

`python -m tests.campaigns.fuzz --seconds 300` tries as many as fit. Anything but an `InputError`, a
crash, a long wait or much memory is a find; it is kept with the seed that reproduces it.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from pipeline.backbones.weights import read_backbones
from pipeline.captions.table import read_info, read_table, write_info
from pipeline.captions.tokenizer import tokenize
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.decoders.captioner_file import read_model
from pipeline.evaluation.confidence import read_confidence
from pipeline.evaluation.metrics_file import add_digest
from pipeline.evaluation.reports import ReportFiles, read_evaluation
from pipeline.images.archive import ImageArchive
from pipeline.images.decode import decode_image
from pipeline.runtime.errors import InputError
from pipeline.sources.captions import read_captions
from tests.conftest import Artifacts, make_tiny, make_world
from tests.helpers.mutations import (
    mutated,
    mutated_header,
    mutated_json,
    mutated_zip,
    replace_value,
)

CPU = torch.device("cpu")
SECONDS, MEMORY = 20, 6 << 30  # a try may take; of address space, torch's gigabytes included


@dataclass(frozen=True)
class Parser:
    """What is fuzzed: a valid file, how to change it, and what reads it."""

    name: str
    source: Path
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


def parsers(tiny: Artifacts) -> list[Parser]:
    table_info = read_info(tiny.table)
    reports = ReportFiles.in_folder(tiny.reports).evaluation

    def images(path: Path) -> None:
        with ImageArchive(path) as archive:
            for one in archive.ids[:8]:
                decode_image(archive.read(one), one)

    def captions(path: Path) -> None:
        for every in read_captions(path).captions.values():
            for caption in every:
                assert all(word.isprintable() for word in tokenize(caption))

    def features(path: Path) -> None:
        cache = read_features(path)
        FeatureDataset(cache, cache.ids, CPU)

    def evaluation(number: int) -> Callable[[Path], object]:
        return lambda path: read_evaluation(*(*reports[:number], path, *reports[number + 1 :]))

    def metrics(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutated(content, rng)
        whole = json.loads(content)
        replace_value(whole, rng)
        with suppress(Exception):  # if there is no place for a digest, that is refused
            whole = add_digest(whole, [report.read_bytes() for report in reports[1:]])
        return json.dumps(whole).encode()

    def in_json(content: bytes, rng: random.Random) -> bytes:
        return rng.choice([mutated, mutated_json])(content, rng)

    def in_header(content: bytes, rng: random.Random) -> bytes:
        return rng.choice([mutated, mutated_header])(content, rng)

    def in_zip(content: bytes, rng: random.Random) -> bytes:
        return rng.choice([mutated, mutated_zip])(content, rng)

    def table(path: Path) -> object:
        digest = sha256(path.read_bytes()).hexdigest()[:16]
        write_info(path, replace(table_info, table_digest=digest))
        return read_table(path).split("train")

    found = [
        Parser("image archive", tiny.images, in_zip, images),
        Parser("text archive", tiny.text, in_zip, captions),
        Parser("captions table", tiny.table, mutated, table),
        Parser("table info", tiny.table.with_suffix(".json"), in_json, read_info),
        Parser(
            *("vocabulary", tiny.vocabulary, in_json),
            lambda path: read_vocabulary(path, table_info.table_digest),
        ),
        Parser("params", tiny.params, mutated, lambda path: load_params(path, TrainConfig)),
        Parser("model", tiny.model, in_header, lambda path: read_model(path, CPU)),
        Parser("backbone", tiny.backbone, in_header, read_backbones),
        Parser("calibration", tiny.confidence, in_json, read_confidence),
        Parser("features", tiny.features, mutated, features),
    ]
    for number, path in enumerate(reports):
        change = in_json if path.suffix == ".json" else mutated
        change = metrics if path.stem == "metrics" else change
        found.append(Parser(path.name, path, change, evaluation(number)))
    return found


def attempt(parser: Parser, seed: str, folder: Path) -> str:
    """`read`, or `refused`; what else happens is raised."""
    path = folder / f"fuzzed{parser.source.suffix}"
    path.write_bytes(parser.change(parser.source.read_bytes(), random.Random(seed)))
    try:
        parser.read(path)
    except InputError:
        return "refused"
    return "read"


def _try_some(parser: Parser, seeds: list[str], folder: Path, done: Any) -> None:
    """In a process of its own, for what would end this one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for seed in seeds:
        done.send(("begun", seed))
        try:
            done.send((attempt(parser, seed, folder), seed))
        except BaseException:
            done.send((traceback.format_exc(), seed))
    done.close()


def find(parser: Parser, seeds: list[str], folder: Path) -> tuple[Counter[str], list[str]]:
    """How often the parser read and refused, and what it should not have done."""
    tally, finds = Counter[str](), []
    while seeds:
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_try_some, args=(parser, seeds, folder, theirs))
        process.start()
        theirs.close()
        current = seeds[0]
        try:
            while ours.poll(SECONDS):
                what, current = ours.recv()
                if what in ("read", "refused"):
                    tally[what] += 1
                elif what != "begun":
                    finds.append(f"{parser.name}, seed {current}:\n{what}")
            else:
                finds.append(f"{parser.name}, seed {current}: more than {SECONDS} s")
                process.kill()
        except EOFError:
            process.join()
            if process.exitcode:
                finds.append(f"{parser.name}, seed {current}: ended with {process.exitcode}")
        seeds = seeds[seeds.index(current) + 1 :]
    return tally, finds


FORK = multiprocessing.get_context("fork")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # else a forked process waits for threads that it does not have
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "world").mkdir()
        tiny = make_tiny(make_world(folder / "world"))
        tallies: dict[str, Counter[str]] = {}
        finds: list[str] = []
        end, turn = time.monotonic() + asked.seconds, 0
        while time.monotonic() < end:
            for one in parsers(tiny):
                seeds = [f"{asked.seed} {turn} {number}" for number in range(50)]
                tally, found = find(one, seeds, folder)
                tallies[one.name] = tallies.get(one.name, Counter()) + tally
                finds += found
            turn += 1
    for name, tally in tallies.items():
        print(f"{name:18} {tally['read']:6} read, {tally['refused']:6} refused")
    kinds = {one.rstrip().splitlines()[-1]: one for one in finds}
    for one in kinds.values():
        print(f"\n{one}")
    if finds:
        sys.exit(f"error: {len(finds)} finds of {len(kinds)} kinds; the seed makes each again")


if __name__ == "__main__":
    main()
