"""Training beside another process that wants the cores, by how long OpenMP's threads spin.

    python -m benchmarks.beside pooled

Each setting trains for some seconds alone, beside a busy process of lower priority (nice 19), and
beside one of the same priority.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.training import WORDS, made_up_split, num_tokens
from pipeline.config.load import load_params
from pipeline.config.schema import TrainConfig
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.entrypoint import app, one_line_errors
from pipeline.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
DECODERS = {"pooled": "show_and_tell", "grid": "spatial_attention"}
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
BUSY = [sys.executable, "-c", "while True: pass"]
SECONDS = 12.0
CHILD = "train-one"


def rate(layer: str) -> float:
    """Train for some seconds; return tokens a second."""
    config = load_params(ROOT / "params.yaml", TrainConfig)
    config = config.model_copy(update={"decoder": DECODERS[layer]})
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        split = made_up_split(Path(folder, "f.h5"), layer, device)
        sizes = (split.features.shape, WORDS)
        decoder = build_decoder(DecoderConfig.of(config.model_dump(), *sizes)).to(device)
        decoder.set_feature_stats(split.features.mean, split.features.std)
        trainer = Trainer(decoder, config, split, torch.float32)
        trainer.train_epoch(1)  # warms up
        begin, epochs = time.monotonic(), 0
        while time.monotonic() - begin < SECONDS:
            epochs += 1
            trainer.train_epoch(1 + epochs)
        return num_tokens(split) * epochs / (time.monotonic() - begin)


@contextmanager
def beside(command: list[str]) -> Iterator[None]:
    """Run a command until the block ends."""
    process = subprocess.Popen(command) if command else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def main(
    layer: Annotated[str, typer.Argument(help="pooled or grid.")],
    rounds: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Print a table of tokens a second."""
    print("| | alone | beside nice 19 | beside an equal |\n| --- | --- | --- | --- |")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    for _ in range(rounds):
        for name, variables in SETTINGS.items():
            rates = []
            for other in ([], ["nice", "-n", "19", *BUSY], BUSY):
                command = [sys.executable, "-m", "benchmarks.beside", CHILD, layer]
                with beside(other):
                    done = subprocess.run(
                        command, env=inherited | variables, capture_output=True, check=True
                    )
                rates.append(float(done.stdout))
            cells = [f"{r:,.0f} ({r / rates[0]:.2f})" for r in rates]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(rate(sys.argv[2]))
    else:
        benchmark = app()
        benchmark.command()(main)
        with one_line_errors():
            benchmark()
