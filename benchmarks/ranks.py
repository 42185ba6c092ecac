"""Ranks: tokens a second of two ranks with one thread each, beside one process with two threads."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from pydantic import TypeAdapter

from benchmarks.timing import Row
from benchmarks.training import WORDS, made_up_split, num_tokens
from pipeline.config.schema import TrainConfig
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.distributed.launch import launch
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.world import on_ranks
from pipeline.entrypoint import one_line_errors
from pipeline.runtime.device import seed_everything
from pipeline.training.trainer import Trainer

CORES = 2
CPU = torch.device("cpu")


def rows(config: TrainConfig, repeats: int) -> Iterator[Row]:
    """Decoders of vectors and of grids; in every round one process and two ranks take turns."""
    for name in ("show_and_tell", "spatial_attention"):
        own = config.model_copy(update={"decoder": name, "min_epoch_steps": 1})
        rates: dict[int, list[float]] = {1: [], CORES: []}
        with TemporaryDirectory() as scratch:
            for _ in range(repeats):
                for ranks in rates:
                    rates[ranks].append(_measure(own, ranks, Path(scratch)))
        rate = median(rates[CORES])
        baseline = f"one process, {CORES} threads"
        what = f"training, {name}, {CORES} ranks"
        yield Row(what, rate, "tokens/s", baseline, rate / median(rates[1]), "0.85")


def _measure(config: TrainConfig, ranks: int, folder: Path) -> float:
    """Tokens a second of the second epoch."""
    out, settings = folder / "rate", folder / "config.json"
    settings.write_text(config.model_dump_json())
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(CORES // ranks)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # as `showtell` does
    try:
        launch([sys.executable, "-m", "benchmarks.ranks", str(settings), str(out)], ranks)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    return float(out.read_text())


def _train(config: TrainConfig, out: Path, ranks: Ranks) -> None:
    seed_everything(0)
    with TemporaryDirectory() as scratch:
        data = made_up_split(Path(scratch, "features.h5"), config.feature_kind, CPU)
        model = DecoderConfig.of(config.model_dump(), data.features.shape, WORDS)
        trainer = Trainer(build_decoder(model), config, data, torch.float32, ranks)
        trainer.train_epoch(1)  # warms up
        began = time.perf_counter()
        trainer.train_epoch(2)
        if ranks.is_main:
            out.write_text(str(num_tokens(data) / (time.perf_counter() - began)))


if __name__ == "__main__":
    with one_line_errors():
        logging.getLogger().setLevel(logging.ERROR)
        params, result = map(Path, sys.argv[1:])
        training = TypeAdapter(TrainConfig).validate_json(params.read_text())
        on_ranks(lambda ranks: _train(training, result, ranks), 1, timeout=600, device="cpu")
