"""Time and memory of every stage over the number of images, on made-up data in COCO's format.

    python -m benchmarks.scale 1000 10000 123287

The images are small and the decoder too: what grows with the set is measured, not the CNN.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from zipfile import ZIP_STORED, ZipFile

import typer
import yaml
from PIL import Image

from pipeline.entrypoint import app, one_line_errors

ROOT = Path(__file__).resolve().parent.parent
GREEDY = [
    "--params",
    "greedy/params.yaml",
    "--out-dir",
    "greedy/reports",
]  # a second run, to compare
COMMANDS = [
    *([stage] for stage in "download prepare backbone extract vocab train scst evaluate".split()),
    *(["report"], ["evaluate", *GREEDY], ["compare", ".", "./greedy"]),
]
TEST_IMAGES = 5000  # Karpathy's, of val and of test; a smaller set has a tenth each
NUM_WORDS = 10_000
CHANGES: dict[str, dict[str, Any]] = {
    "backbone": {"name": "shufflenet_v2_x0_5", "weights": "random"},
    "extract": {"layer": "pooled", "crop_mode": "squash", "image_size": 32, "batch_size": 64},
    "train": {
        "decoder": "show_and_tell",
        "embed_size": 128,
        "hidden_size": 128,
        "batch_size": 512,
        "epochs": 1,
    },
    "scst": {"epochs": 0},
    "evaluate": {"beam_size": 2},
}


def write_coco(folder: Path, num_images: int) -> None:
    """Write `coco.zip` and `dataset_coco.json` with COCO's names and Karpathy's split."""
    rng = random.Random(0)
    words = [f"w{rank}" for rank in range(NUM_WORDS)]
    weights = [1 / (rank + 3) for rank in range(NUM_WORDS)]  # Zipf's law
    jpegs = [_jpeg(rng) for _ in range(64)]
    held_out = min(TEST_IMAGES, num_images // 10)
    images = []
    with ZipFile(folder / "coco.zip", "w", ZIP_STORED) as archive:
        for number in range(num_images):
            part = "train2014" if number % 3 else "val2014"
            name = f"COCO_{part}_{number:012d}.jpg"
            archive.writestr(f"{part}/{name}", jpegs[number % len(jpegs)])
            sentences = []
            for _ in range(5 + (number % 400 == 0)):
                tokens = rng.choices(words, weights, k=rng.randint(8, 13))
                raw = " ".join(tokens).capitalize() + "."
                sentences.append({"tokens": tokens, "raw": raw, "imgid": number})
            split = "test" if number < held_out else "val" if number < 2 * held_out else "train"
            entry = {"filepath": part, "filename": name, "split": split, "cocoid": number}
            images.append({**entry, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def run(arguments: Sequence[str], folder: Path, module: str = "pipeline") -> tuple[float, float]:
    """Run a module; return its seconds, and its own memory in GB: without pages of files."""
    began, peak = time.monotonic(), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None:
            peak = max(peak, _own_memory(process.pid))
            time.sleep(0.05)
        assert process.stderr is not None
        if process.returncode:
            raise RuntimeError(f"{arguments}: {process.stderr.read().decode()[-2000:]}")
    return time.monotonic() - began, peak / 1e6


def _own_memory(pid: int) -> int:
    """Return the kilobytes that a process has for itself."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("RssAnon", "0 kB").split()[0])


def _jpeg(rng: random.Random) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (32, 32), rng.randbytes(3 * 32 * 32)).save(file, "JPEG")
    return file.getvalue()


def main(
    sizes: Annotated[list[int], typer.Argument(min=100, help="Numbers of images.")],
) -> None:
    """Run all stages on made-up sets of these sizes, and print a table."""
    print("| stage | images | seconds | ms per image | GB |\n| --- | --- | --- | --- | --- |")
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_coco(folder, size)
            params = yaml.safe_load((ROOT / "params.yaml").read_text())
            params["download"] |= {"images": "coco.zip", "images_md5": None}
            params["download"] |= {"text": "dataset_coco.json", "text_md5": None}
            for group, changes in CHANGES.items():
                params[group] |= changes
            (folder / "params.yaml").write_text(yaml.safe_dump(params))
            params["evaluate"]["beam_size"] = 1
            (folder / "greedy").mkdir()
            (folder / "greedy/params.yaml").write_text(yaml.safe_dump(params))
            for arguments in COMMANDS:
                seconds, memory = run(arguments, folder)
                row = (arguments[0], f"{size:,}", f"{seconds:.1f}", f"{1000 * seconds / size:.2f}")
                print(f"| {' | '.join(row)} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    scale = app()
    scale.command()(main)
    with one_line_errors():
        scale()
