"""`python -m benchmarks`: the table of docs/performance.md, made on this machine."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import captioning, edges, extraction, ranks, search, training
from benchmarks.timing import HEADER, machine
from pipeline.config.load import load_params
from pipeline.config.schema import TrainConfig
from pipeline.entrypoint import app, one_line_errors
from pipeline.runtime.device import (
    fast_dtypes,
    resolve_device,
    resolve_dtype,
    seed_everything,
)
from pipeline.runtime.errors import InputError

PARTS = ("extraction", "training", "ranks", "search", "captioning", "edges")


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A zip of images of the CNN's size; else made up.")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="A zip of photos; else made up.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Measure the hot paths beside their limits, and print a table of ratios."""
    for part in parts or []:
        if part not in PARTS:
            raise InputError(f"there is no benchmark '{part}'; there are {', '.join(PARTS)}")
    device = resolve_device("auto")
    precision = resolve_dtype("auto", device)
    frozen = [*fast_dtypes(device), torch.float32][0]
    seed_everything(seed=0)
    decoder = load_params(params, TrainConfig)
    print(f"{machine(device)}; medians of {repeats} interleaved rounds\n\n{HEADER}", flush=True)
    work = {
        "extraction": lambda: extraction.rows(images, photos, device, frozen, repeats),
        "training": lambda: training.rows(decoder, device, precision, repeats),
        "ranks": lambda: ranks.rows(decoder, repeats),
        "search": lambda: search.rows(decoder, device, repeats),
        "captioning": lambda: captioning.rows(decoder, device, repeats),
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
