"""`python -m benchmarks.gpu`: the GPU's table of docs/performance.md, and profiles of its paths, in
about seven minutes.

Photos, features and captions are made up, of Flickr8k's and COCO's sizes; everything is warmed up,
and the clock waits for the device.
"""

import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu_extraction, gpu_run
from benchmarks.timing import HEADER, Row, gemm_flops, machine
from benchmarks.training import flops_per_token, tutorial
from pipeline.captions.vocabulary import END, PAD, SPECIAL, START
from pipeline.config.load import load_params
from pipeline.config.schema import ScstConfig, TrainConfig
from pipeline.dataset.batching import EncodedCaptions
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder, DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.entrypoint import app, one_line_errors
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.runtime.device import resolve_device, resolve_dtype, seed_everything
from pipeline.self_critical.trainer import SelfCriticalTrainer
from pipeline.training.trainer import Trainer, iter_split_batches

PARTS = ("tests", "training", "scst", "search", "extraction", "run", "coco")
SEARCHED = 2000  # images
VECTOR, GRID, SMALL_GRID = (2048,), (10, 10, 1280), (7, 7, 2048)
PLAIN = {"scheduled_sampling": 0.0, "feature_noise": 0.0}


@dataclass(frozen=True)
class Size:
    """Of a data set, and how often its epochs are timed."""

    images: int
    words: int
    repeats: int
    share: int = 1  # time one epoch of this fraction of the images (1 / share), and multiply


FLICKR8K, COCO = Size(6000, 2541, 3), Size(113_287, 9490, 1)


class MadeUpFeatures(FeatureDataset):
    """Random ones, on the device."""

    def __init__(self, images: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._rows, self.shape, self.device = np.arange(images)[None], shape, device
        generator = torch.Generator(device).manual_seed(0)
        kind = torch.float32 if len(shape) == 1 else torch.float16
        held = torch.empty(images, *shape, dtype=kind, device=device)
        self._resident = held.uniform_(generator=generator)
        self.mean, self.std = (
            torch.full((shape[-1],), value, device=device) for value in (0.5, 0.3)
        )


def made_up(size: Size, shape: tuple[int, ...], device: torch.device) -> Split:
    """Five captions of each image, as long as Flickr8k's, of words as unevenly frequent."""
    rng = np.random.default_rng(0)
    images = size.images // size.share
    lengths = np.maximum(3, np.round(rng.gamma(8, 1.35, 5 * images))).astype(np.int64) + 2
    shares = 1 / (np.arange(size.words - len(SPECIAL)) + 3)
    tokens = len(SPECIAL) + rng.choice(
        len(shares), (5 * images, int(lengths.max())), p=shares / shares.sum()
    )
    place = np.arange(tokens.shape[1])
    tokens[:, 0] = START
    tokens[place == lengths[:, None] - 1] = END
    tokens[place >= lengths[:, None]] = PAD
    of = np.repeat(np.arange(images) * size.share, 5)
    captions = EncodedCaptions(*map(torch.from_numpy, (tokens, lengths, of)))
    return Split(MadeUpFeatures(size.images, shape, device), [], captions)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def untrained(split: Split, config: TrainConfig, words: int) -> Decoder:
    torch.manual_seed(0)
    decoder = build_decoder(DecoderConfig.of(config.model_dump(), split.features.shape, words))
    decoder.to(split.features.device)
    decoder.set_feature_stats(split.features.mean, split.features.std)
    return decoder


@dataclass(frozen=True)
class Bench:
    """What every part needs."""

    device: torch.device
    train: TrainConfig
    scst: ScstConfig
    profiles: Path | None

    @property
    def precision(self) -> torch.dtype:
        return resolve_dtype("auto", self.device)

    def profile(self, name: str, work: Callable[[], object]) -> None:
        """The kernels of `work`, dearest first, as a file."""
        if self.profiles is None:
            return
        kinds = [ProfilerActivity.CPU]
        kinds += [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with profile(activities=kinds) as made:
            work()
            _wait(self.device)
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = made.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)
        (self.profiles / f"{name}.txt").write_text(table)

    def epoch(self, name: str, decoder: str, size: Size, shape: tuple[int, ...]) -> Iterator[Row]:
        """An epoch of teacher forcing, beside its steps alone, the arithmetic and the tutorials."""
        config = self.train.model_copy(update={"decoder": decoder, **PLAIN})
        split = made_up(size, shape, self.device)
        trainer = Trainer(untrained(split, config, size.words), config, split, self.precision)
        numbers = count(1)
        for _ in range(2):  # the first sees each shape, the second may capture the rest
            trainer.train_epoch(next(numbers))
        took = statistics.median(
            seconds(lambda: trainer.train_epoch(next(numbers)), self.device)
            for _ in range(size.repeats)
        )
        batches = iter_split_batches(split, config, torch.Generator(), self.device)
        ready = [
            (split.features[batch.images], batch.inputs, batch.targets, *batch.extra)
            for batch in islice(batches, 200)
        ]

        def steps() -> None:
            for inputs in ready:
                trainer._train_step(*inputs)

        alone = seconds(steps, self.device) / len(ready) * trainer.steps_per_epoch
        scale = size.share
        yield Row(f"{name}, an epoch", scale * took, "s", "its steps alone", took / alone)
        tokens = int(split.captions.lengths.sum()) - len(split.captions)
        if len(shape) == 1:
            floor = tokens * _flops(config, size.words) / gemm_flops(self.device, self.precision)
            yield Row(f"{name}, an epoch", scale * took, "s", "arithmetic limit", took / floor)
        self.profile(f"{decoder}-{size.images}", steps)
        if size is FLICKR8K or self.device.type == "cpu":
            few = Size(size.images // 10, size.words, 1)
            loop = tutorial(made_up(few, shape, self.device), config)
            loop()
            theirs = loop() / seconds(loop, self.device)
            yield Row(f"{name}, tokens", tokens / took, "1/s", "tutorial", tokens / took / theirs)

    def training(self) -> Iterator[Row]:
        yield from self.epoch("Show and Tell, Flickr8k", "show_and_tell", FLICKR8K, VECTOR)
        yield from self.epoch(
            "spatial attention 10 x 10, Flickr8k", "spatial_attention", FLICKR8K, GRID
        )

    def coco(self) -> Iterator[Row]:
        yield from self.epoch("Show and Tell, COCO", "show_and_tell", COCO, VECTOR)
        part = Size(COCO.images, COCO.words, COCO.repeats, share=8)
        yield from self.epoch(
            "spatial attention 7 x 7, COCO", "spatial_attention", part, SMALL_GRID
        )

    def reinforce(self) -> Iterator[Row]:
        config = self.train.model_copy(update={"decoder": "spatial_attention", **PLAIN})
        split = made_up(FLICKR8K, GRID, self.device)
        decoder = untrained(split, config, FLICKR8K.words)
        trainer = SelfCriticalTrainer(decoder, split, self.scst, self.precision, max_length=25)
        trainer.train_epoch(1)
        took = statistics.median(
            seconds(partial(trainer.train_epoch, number), self.device) for number in (2, 3, 4)
        )
        yield Row("self-critical, Flickr8k, an epoch", took, "s", "6 s", took / 6)
        some = torch.arange(self.scst.batch_size)
        self.profile("scst", lambda: trainer._train_on(some))
        if self.device.type == "cuda":
            features = split.features[some]
            drawn = seconds(lambda: trainer._sample(features, some.to(self.device)), self.device)
            yield Row(
                "self-critical, a batch drawn and scored", 1000 * drawn, "ms", "20 ms", drawn / 0.02
            )

    def search(self) -> Iterator[Row]:
        for decoder, shape in (
            ("show_and_tell", VECTOR),
            ("spatial_attention", GRID),
            ("top_down_attention", GRID),
        ):
            config = self.train.model_copy(update={"decoder": decoder})
            split = made_up(FLICKR8K, shape, self.device)
            speaks = untrained(split, config, FLICKR8K.words).eval()
            for batch in (100, 500):
                search = BeamSearch(speaks, BeamSearchConfig(5, 1.0, 20, no_repeat_ngram_size=2))
                parts = [
                    split.features[begin : begin + batch] for begin in range(0, SEARCHED, batch)
                ]

                def work(search: BeamSearch = search, parts: list[Tensor] = parts) -> None:
                    for part in parts:
                        search(part)

                work()
                took = min(seconds(work, self.device) for _ in range(2))
                yield Row(
                    f"beam 5, {decoder}, {batch} at once",
                    SEARCHED / took,
                    "captions/s",
                    "5,000",
                    SEARCHED / took / 5000,
                )
            self.profile(f"search-{decoder}", partial(search, parts[0]))


def tests() -> Iterator[Row]:
    """`tests/test_gpu.py`, before any figure is believed."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "tests/test_gpu.py"]
    began = time.monotonic()
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    print(made.stdout[-1500:], flush=True)
    took = time.monotonic() - began
    yield Row(f"tests/test_gpu.py, exit {made.returncode}", took, "s", "60 s", took / 60)


def _flops(config: TrainConfig, words: int) -> float:
    """Of `benchmarks.training`, for another vocabulary."""
    return flops_per_token(config) + 3 * 2 * config.hidden_size * (words - 2541)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}.")] = None,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile too: a minute.")] = False,
    profiles: Annotated[Path | None, typer.Option(help="A folder for profiles.")] = None,
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Measure the hot paths on a GPU, each beside its limit."""
    device = resolve_device("auto")
    seed_everything(0, load_params(params, TrainConfig).deterministic)
    if profiles is not None:
        profiles.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        device, load_params(params, TrainConfig), load_params(params, ScstConfig), profiles
    )
    print(f"{machine(device)}\n\n{HEADER}", flush=True)
    with TemporaryDirectory() as scratch:
        work: dict[str, Callable[[], Iterator[Row]]] = {
            "extraction": lambda: gpu_extraction.rows(device, Path(scratch), compiled),
            "tests": tests,
            "run": lambda: gpu_run.rows(device, Path(scratch), params),
            "training": bench.training,
            "coco": bench.coco,
            "scst": bench.reinforce,
            "search": bench.search,
        }
        for part in parts or PARTS:
            began = time.monotonic()
            try:
                for row in work[part]():
                    print(row.markdown(), flush=True)
            except Exception:  # the rest is worth as much
                print(f"{part}: {traceback.format_exc()[-1800:]}", flush=True)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            print(f"({part}: {time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    benchmarks = app()
    benchmarks.command()(main)
    with one_line_errors():
        benchmarks()
