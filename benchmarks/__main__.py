"""`python -m benchmarks`: the table of docs/performance.md, made on this machine."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import edges, extraction, search, training
from benchmarks.timing import HEADER, machine
from pipeline.command import app, one_line_errors
from pipeline.config import read
from pipeline.config.train import TrainConfig
from pipeline.device import choose_device, fast_precisions, make_repeatable, training_precision
from pipeline.errors import InputError

PARTS = ("extraction", "training", "search", "edges")


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A zip of pictures of the CNN's size; else made up.")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="A zip of photos; else made up.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Measure the hot paths beside their limits, and print a table of ratios."""
    for part in parts or []:
        if part not in PARTS:
            raise InputError(f"there is no benchmark '{part}'; there are {', '.join(PARTS)}")
    device = choose_device("auto")
    precision = training_precision("auto", device)
    frozen = [*fast_precisions(device), torch.float32][0]
    make_repeatable(seed=0)
    decoder = read(params, TrainConfig)
    print(f"{machine(device)}; medians of {repeats} interleaved rounds\n\n{HEADER}", flush=True)
    work = {
        "extraction": lambda: extraction.rows(images, photos, device, frozen, repeats),
        "training": lambda: training.rows(decoder, device, precision, repeats),
        "search": lambda: search.rows(decoder, device, repeats),
        "edges": lambda: edges.rows(repeats),
    }
    for part in parts or PARTS:
        for row in work[part]():
            print(row.markdown(), flush=True)


if __name__ == "__main__":
    benchmarks = app()
    benchmarks.command()(main)
    with one_line_errors():
        benchmarks()
