"""`showtell demo`: run dvc.yaml's graph on a small synthetic data set, in its own workspace."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from PIL import Image

from pipeline.captions.table import read_table
from pipeline.captions.tokenizer import tokenize
from pipeline.commands.contact_sheet import contact_sheet
from pipeline.demo.accuracy import is_correct
from pipeline.demo.archives import write_archives
from pipeline.evaluation.metrics_file import score_table
from pipeline.images.archive import ImageArchive
from pipeline.images.decode import decode_image
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import file_digest

log = logging.getLogger(__name__)

SOURCE = Path("source")  # in the workspace: the source of the download stage
IMAGES, TEXT = SOURCE / "Flickr8k_Dataset.zip", SOURCE / "Flickr8k_text.zip"
MARK = "# all of this is made by `showtell demo`"
COUNTS = {"train": 4000, "val": 200, "test": 200}
SEED = 8
NUM_SHOWN = 8  # captions

# Changes to the checkout's params.yaml.
PARAMS: dict[str, dict[str, Any]] = {
    "download": {"images": str(IMAGES), "text": str(TEXT)},
    "backbone": {"name": "shufflenet_v2_x0_5", "weights": "pipeline/demo/shapes.safetensors"},
    "extract": {"layer": "pooled", "crop_mode": "squash", "image_size": 96, "hflip": False},
    "vocab": {"min_count": 2},
    "train": {
        "decoder": "show_and_tell",
        "embed_size": 256,
        "hidden_size": 256,
        "dropout": 0.2,
        "word_dropout": 0.0,
        "feature_noise": 0.0,
        "scheduled_sampling": 0.0,
        "ema_decay": 0.0,
        "label_smoothing": 0.0,
        "epochs": 10,
        "min_epoch_steps": 1,
        "learning_rate": 0.004,
        "warmup_ratio": 0.1,
    },
    "scst": {"epochs": 0},
    # Captions of two shapes of one colour may rightly repeat a bigram.
    "evaluate": {
        "split": "test",
        "beam_size": 3,
        "length_penalty": 0.85,
        "max_length": 16,
        "no_repeat_ngram_size": 0,
    },
}


def demo(checkout: Path, workspace: Path, counts: dict[str, int] = COUNTS) -> None:
    """Create the workspace, run the graph in it with DVC, and print the results.

    A second run finds everything up to date.

    Raises:
        InputError: `checkout` is not a checkout of the project, DVC is missing, or a stage failed.
    """
    prepare_workspace(checkout, workspace, counts)
    dvc(workspace, "repro")
    show(workspace)


def prepare_workspace(checkout: Path, workspace: Path, counts: dict[str, int]) -> None:
    """Create a workspace of the checkout's graph and code and the demo's data, without git."""
    for name in ("dvc.yaml", "params.yaml", "pipeline", ".dvc/config"):
        if not (checkout / name).exists():
            raise InputError(f"{checkout} has no {name}; run the demo in the project's checkout")
    if importlib.util.find_spec("dvc") is None:
        raise InputError("DVC is not installed; run: pip install dvc")
    if not _may_overwrite(workspace):
        raise InputError(
            f"{workspace} already exists and is not a demo workspace; choose another --workspace"
        )
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / ".gitignore").write_text(f"{MARK}\n*\n")
    shutil.rmtree(workspace / "pipeline", ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(checkout / "pipeline", workspace / "pipeline", ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copyfile(checkout / name, workspace / name)
    if not (workspace / ".dvc").is_dir():
        dvc(workspace, "init", "--no-scm", "--quiet")
    shutil.copytree(checkout / ".dvc/plots", workspace / ".dvc/plots", dirs_exist_ok=True)
    settings = (checkout / ".dvc" / "config").read_text()
    (workspace / ".dvc" / "config").write_text(
        settings.replace("[core]", "[core]\n    no_scm = true")
    )

    record = workspace / SOURCE / "made.json"
    if not (record.is_file() and _is_unchanged(workspace, record, counts)):
        write_archives(workspace / IMAGES, workspace / TEXT, counts, SEED)
        record.write_text(json.dumps(_fingerprint(workspace, counts)))
    digests = _fingerprint(workspace, counts)
    params = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    for group, changes in PARAMS.items():
        params[group].update(changes)
    params["download"].update(images_md5=digests["images"], text_md5=digests["text"])
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def _may_overwrite(workspace: Path) -> bool:
    """Whether the folder is a demo workspace, empty or missing."""
    mark, record = workspace / ".gitignore", workspace / SOURCE / "made.json"
    if record.is_file() or (mark.is_file() and mark.read_bytes().startswith(MARK.encode())):
        return True
    return not workspace.exists() or (workspace.is_dir() and not any(workspace.iterdir()))


def _is_unchanged(workspace: Path, record: Path, counts: dict[str, int]) -> bool:
    try:
        return bool(json.loads(record.read_text()) == _fingerprint(workspace, counts))
    except (OSError, ValueError):
        return False


def _fingerprint(workspace: Path, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "counts": counts,
        "seed": SEED,
        "images": file_digest(workspace / IMAGES),
        "text": file_digest(workspace / TEXT),
    }


def dvc(workspace: Path, *arguments: str) -> None:
    """Run DVC in the workspace, with this Python as the stages' `python`.

    Raises:
        InputError: it failed; its output says why.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    if subprocess.run(command, cwd=workspace, env=environment, check=False).returncode:
        raise InputError(f"dvc {arguments[0]} failed in {workspace}; its output above says why")


def show(workspace: Path) -> None:
    """Print scores with their baselines, some captions, and what to look at next."""
    metrics = json.loads((workspace / "reports/metrics.json").read_text())
    captions = json.loads((workspace / "reports/captions.json").read_text())
    references = read_table(workspace / "data/captions.csv").split("test").by_image
    rows = []
    for entry in captions:
        reference = references[entry["image_id"]][0]
        correct = is_correct(tokenize(entry["caption"]), reference)
        rows.append((correct, entry["caption"], " ".join(reference)))
    print(f"\nscores on {len(captions)} test images\n{score_table(metrics)}")
    print(f"both shapes and colours right: {sum(row[0] for row in rows)} of {len(captions)}")
    print("constant: the best single caption for all images; human: one person against the others")
    print("\nsome captions (* wrong)")
    for correct, caption, expected in rows[:NUM_SHOWN]:
        print(f" {' ' if correct else '*'} {caption:44} of: {expected}")
    write_images(workspace, captions[:NUM_SHOWN])
    activate = Path(sys.executable).parent / "activate"
    enter = f"source {os.path.relpath(activate)} && " if activate.exists() else ""
    print(f"""
what to look at next
  {workspace}/reports/report.html   the run as a page: scores, curves, every image
  {workspace}/captions.png   these images with their captions
  {workspace}/reports/       all results: metrics, history, captions, scores
  README.md            the real data set, and how to compare experiments
and after `{enter}cd {workspace}`
  dvc plots show             loss and scores by epoch, as a page
  showtell caption photos/   captions by this model""")


def write_images(workspace: Path, captions: list[dict[str, str]]) -> None:
    """Write the images of these captions as files, and on one contact sheet."""
    photos = workspace / "photos"
    photos.mkdir(exist_ok=True)
    tiles = []
    with ImageArchive(workspace / "data/images.zip") as archive:
        for entry in captions:
            content = archive.read(entry["image_id"])
            (photos / entry["image_id"]).write_bytes(content)
            image = decode_image(content, entry["image_id"])
            image = image.resize((192, 192), Image.Resampling.BICUBIC)
            tiles.append((image, "\n".join(textwrap.wrap(entry["caption"], 28))))
    sheet = contact_sheet(tiles, columns=4, text_height=40, gap=12, font_size=13)
    sheet.save(workspace / "captions.png")


def main(
    workspace: Annotated[Path, typer.Option(help="Where to run it.")] = Path(".demo"),
    images: Annotated[
        int, typer.Option(min=22, help="Images to draw; with few, captions are poor.")
    ] = sum(COUNTS.values()),
) -> None:
    """Run the whole graph on a small synthetic data set, offline."""
    num_test = max(1, images * COUNTS["test"] // sum(COUNTS.values()))
    counts = {"train": images - 2 * num_test, "val": num_test, "test": num_test}
    demo(Path.cwd(), workspace, counts)
