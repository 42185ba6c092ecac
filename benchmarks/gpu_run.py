"""The default run after extraction, by its own commands: vocabulary, training, self-critical
training, evaluation, on made-up captions and grids of Flickr8k's size."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.timing import Row
from benchmarks.training import made_up_references
from pipeline.demo.archives import SPLIT_LISTS, TOKEN_FILE
from pipeline.extraction.feature_writer import create_features
from pipeline.features.cache_file import row_checksums
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.images.unreadable import write_unreadable

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {"train": 6000, "val": 1000, "test": 1000}
GRID = (10, 10, 1280)
CHUNK = 128  # images that are made up together

DATA = "--features f.h5 --captions captions.csv"
STAGES = {
    "vocab": "--captions captions.csv --out vocabulary.json",
    "train": f"{DATA} --vocabulary vocabulary.json --out trained.safetensors --history history.csv",
    "scst": f"{DATA} --trained trained.safetensors --out captioner.safetensors --history scst.csv",
    "evaluate": f"{DATA} --model captioner.safetensors --out-dir reports",
}


def rows(device: torch.device, folder: Path, params: Path) -> Iterator[Row]:
    ids = [f"{number:06d}.jpg" for number in range(sum(COUNTS.values()))]
    _write_captions(folder / "text.zip", ids)
    _write_images(folder, ids)
    _write_grids(folder / "f.h5", ids, device)
    groups = yaml.safe_load(params.read_text(encoding="utf-8"))
    groups["train"]["patience"] = groups["train"]["epochs"]  # nothing made up is worth stopping for
    groups["scst"]["patience"] = max(1, groups["scst"]["epochs"])
    (folder / "params.yaml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    inputs = "--text text.zip --images images.zip --unreadable unreadable.csv"
    _run(folder, "prepare", f"{inputs} --captions captions.csv --excluded excluded.csv")
    whole = 0.0
    for stage, options in STAGES.items():
        took = _run(folder, stage, options)
        whole += took
        yield Row(f"default run, {stage}", took, "s", "the 90 s of all", took / 90)
    yield Row("default run after extraction", whole, "s", "90 s", whole / 90, "at most 1")


def _run(folder: Path, stage: str, options: str) -> float:
    """Seconds that the command took."""
    command = [sys.executable, "-m", "pipeline", stage, *options.split()]
    began = time.monotonic()
    made = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"{stage}: {made.stderr[-1000:]}")
    return time.monotonic() - began


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def _write_images(folder: Path, ids: list[str]) -> None:
    """An archive of empty images: `prepare` reads their names."""
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for image_id in ids:
            archive.writestr(image_id, b"")
    write_unreadable(folder / "unreadable.csv", {})


def _write_captions(path: Path, ids: list[str]) -> None:
    """In Flickr8k's own form."""
    references, _ = made_up_references(len(ids))
    lines = [
        f"{image_id}#{number}\t{' '.join(caption)}\n"
        for image_id, captions in zip(ids, references, strict=True)
        for number, caption in enumerate(captions)
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(TOKEN_FILE, "".join(lines))
        begin = 0
        for split, count in COUNTS.items():
            names = "".join(f"{one}\n" for one in ids[begin : begin + count])
            archive.writestr(SPLIT_LISTS[split], names)
            begin += count


def _write_grids(path: Path, ids: list[str], device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    pre = Preprocessing(366, 320, "bilinear", (0.5,) * 3, (0.5,) * 3)
    recipe = FeatureRecipe(
        "grid", "mean", "squash", False, None, (View("made_up", "random:0", "", pre),)
    )
    with (
        create_features(path, ids, GRID, "float16", recipe) as out,
        ThreadPoolExecutor(8) as pool,
    ):
        for begin in range(0, len(ids), CHUNK):
            count = min(CHUNK, len(ids) - begin)
            made = torch.rand(count, *GRID, device=device, generator=generator).half().cpu().numpy()
            parts = [made[first : first + 16] for first in range(0, count, 16)]
            out.append_checked(made, np.concatenate(list(pool.map(row_checksums, parts))))
