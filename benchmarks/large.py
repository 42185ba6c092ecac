"""Training on a store of features that does not fit into memory, beside a small one.

    python -m benchmarks.large pooled 10000 1000000
    python -m benchmarks.large grid 1000 123000

The stores are sparse files: all features are 0, and take no disk space. Each image has one caption.
Every size is trained on in a process of its own, by the committed params; its own memory is
measured without pages of files.
"""

import json
import random
import statistics
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.scale import NUM_WORDS, run
from pipeline.captions.table import TableInfo, read_table, write_info, write_rows
from pipeline.captions.tokenizer import TOKENIZER
from pipeline.captions.vocabulary import SPECIAL, Vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.split import load_split
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.entrypoint import app, one_line_errors
from pipeline.features.cache_file import CHECKSUM_DTYPE, CacheSpec, allocate
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"pooled": (1280,), "grid": (10, 10, 1280)}
DECODERS = {"pooled": "show_and_tell", "grid": "spatial_attention"}
WARM_UP = 10  # steps
CHILD = "train-one"


class StopMeasuring(Exception):  # noqa: N818
    """The measured steps are done."""


def write_store(path: Path, layer: str, images: int) -> list[str]:
    """Write a sparse cache of features that are 0; return the images' ids."""
    pre = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    views = (View("made_up", "random:0", "", pre),)
    recipe = FeatureRecipe(layer, "mean", "squash", False, None, views)
    ids = [f"{number:09d}.jpg" for number in range(images)]
    layout = allocate(path, CacheSpec(ids, SHAPES[layer], "float16", recipe))
    checksum = zlib.crc32(bytes(layout.row_size))
    with path.open("r+b") as file:
        file.seek(layout.checksums)
        file.write(np.full(images, checksum, CHECKSUM_DTYPE).tobytes())
    return ids


def write_captions(path: Path, ids: list[str]) -> None:
    """Write a table of one caption an image, with words as frequent as by Zipf's law."""
    rng = random.Random(0)
    words = [f"w{rank}" for rank in range(NUM_WORDS)]
    weights = np.cumsum([1 / (rank + 3) for rank in range(NUM_WORDS)]).tolist()

    def rows() -> Any:
        for number, image_id in enumerate(ids):
            tokens = " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(8, 13)))
            split = ("val", "test")[number] if number < 2 else "train"
            yield image_id, split, tokens.capitalize(), tokens

    digest = write_rows(path, rows())
    counts = {"train": len(ids) - 2, "val": 1, "test": 1}
    write_info(path, TableInfo("made up", "", TOKENIZER, digest, counts, len(ids), {}))


def train(folder: Path, layer: str, steps: int) -> tuple[float, float]:
    """Train for this many steps; return tokens a second, and the seconds."""
    config = load_params(ROOT / "params.yaml", TrainConfig)
    config = config.model_copy(update={"decoder": DECODERS[layer]})
    table, cache = read_table(folder / "captions.csv"), read_features(folder / "features.h5")
    # All words at every size: the output layer takes most of a step.
    vocabulary = Vocabulary((*SPECIAL, *(f"w{rank}" for rank in range(NUM_WORDS))))
    device = torch.device("cpu")
    split = load_split(cache, table, "train", vocabulary, device)
    sizes = (split.features.shape, len(vocabulary))
    decoder = build_decoder(DecoderConfig.of(config.model_dump(), *sizes)).to(device)
    decoder.set_feature_stats(split.features.mean, split.features.std)
    trainer = Trainer(decoder, config, split, torch.float32)
    seen: list[tuple[float, int]] = []

    def after_step() -> None:
        seen.append((time.monotonic(), trainer._tokens))
        if len(seen) > WARM_UP + steps:
            raise StopMeasuring

    with suppress(StopMeasuring):
        trainer.train_epoch(1, after_step)
    (begin, first), (end, last) = seen[WARM_UP], seen[-1]
    return (last - first) / (end - begin), end - seen[0][0]


def measure(
    layer: Annotated[str, typer.Argument(help="pooled or grid.")],
    sizes: Annotated[list[int], typer.Argument(min=1000, help="Numbers of images.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of training to measure.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Of which the medians are shown.")] = 3,
) -> None:
    """Train on stores of these sizes in turn, and print a table."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, str(size)) for size in sizes]
        for folder, size in zip(folders, sizes, strict=True):
            folder.mkdir()
            write_captions(
                folder / "captions.csv", write_store(folder / "features.h5", layer, size)
            )
        runs = [[_run(folder, layer, steps) for folder in folders] for _ in range(rounds)]
    print(
        "| images | tokens a second | of the first | GB | seconds to load |\n" + "| --- " * 5 + "|"
    )
    rates = [statistics.median(one[i][0] for one in runs) for i in range(len(sizes))]
    for i, (size, rate) in enumerate(zip(sizes, rates, strict=True)):
        memory, seconds = (max(one[i][k] for one in runs) for k in (1, 2))
        print(f"| {size:,} | {rate:,.0f} | {rate / rates[0]:.2f} | {memory:.2f} | {seconds:.0f} |")


def _run(folder: Path, layer: str, steps: int) -> tuple[float, float, float]:
    seconds, memory = run([CHILD, str(folder), layer, str(steps)], folder, "benchmarks.large")
    rate, trained = json.loads((folder / "result.json").read_text())
    return rate, memory, seconds - trained


def child(folder: Path, layer: str, steps: int) -> None:
    """Train, and write the rate and the seconds of the steps."""
    rate, seconds = train(folder, layer, steps)
    (folder / "result.json").write_text(json.dumps([rate, seconds]))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        large = app()
        large.command()(measure)
        with one_line_errors():
            large()
