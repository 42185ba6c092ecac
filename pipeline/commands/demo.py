"""`showtell demo`: the very graph of dvc.yaml, on other data, in a workspace of its own."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.captions.table import read_table
from pipeline.captions.tokenizer import tokenize
from pipeline.demo.accuracy import named_right
from pipeline.demo.archives import write_archives
from pipeline.demo.contact_sheet import contact_sheet
from pipeline.evaluation.metrics_file import score_table
from pipeline.images.archive import ImageArchive, decode_image
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import file_digest

log = logging.getLogger(__name__)

SOURCE = Path("source")  # in the workspace: what the download stage is pointed at
IMAGES, TEXT = SOURCE / "Flickr8k_Dataset.zip", SOURCE / "Flickr8k_text.zip"
MARK = "# all of this is made by `showtell demo`"
COUNTS = {"train": 4000, "val": 200, "test": 200}
SEED = 8
SHOWN = 8

# What differs from the checkout's params.yaml.
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
    # Things of one colour say a pair of words twice, and rightly.
    "evaluate": {
        "split": "test",
        "beam_size": 3,
        "length_penalty": 0.85,
        "max_length": 16,
        "no_repeat_ngram_size": 0,
    },
}


def demo(checkout: Path, workspace: Path, counts: dict[str, int] = COUNTS) -> None:
    """Make the workspace, run the graph in it with DVC, and show what came of it.

    A second run finds everything up to date.

    Raises:
        InputError: `checkout` is no checkout of the project, DVC is missing, or a stage failed.
    """
    prepare_workspace(checkout, workspace, counts)
    dvc(workspace, "repro")
    show(workspace)


def prepare_workspace(checkout: Path, workspace: Path, counts: dict[str, int]) -> None:
    """The checkout's graph and code, the demo's data and params, and no git."""
    for name in ("dvc.yaml", "params.yaml", "pipeline", ".dvc/config"):
        if not (checkout / name).exists():
            raise InputError(f"{checkout} has no {name}; run the demo in the project's checkout")
    if importlib.util.find_spec("dvc") is None:
        raise InputError("DVC is not installed here; pip install 'showtell[dvc]'")
    if not _ours(workspace):
        raise InputError(
            f"{workspace} is there already, and the demo did not make it; name another place, "
            "which it may overwrite"
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
    # What draws the images of `dvc plots`.
    shutil.copytree(checkout / ".dvc/plots", workspace / ".dvc/plots", dirs_exist_ok=True)
    settings = (checkout / ".dvc" / "config").read_text()
    (workspace / ".dvc" / "config").write_text(
        settings.replace("[core]", "[core]\n    no_scm = true")
    )

    made = workspace / SOURCE / "made.json"
    if not (made.is_file() and _as_made(workspace, made, counts)):
        write_archives(workspace / IMAGES, workspace / TEXT, counts, SEED)
        made.write_text(json.dumps(_fingerprint(workspace, counts)))
    digests = _fingerprint(workspace, counts)
    params = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    for group, changes in PARAMS.items():
        params[group].update(changes)
    params["download"].update(images_md5=digests["images"], text_md5=digests["text"])
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def _ours(workspace: Path) -> bool:
    """Whether nobody's work can be there."""
    mark, made = workspace / ".gitignore", workspace / SOURCE / "made.json"
    if made.is_file() or (mark.is_file() and mark.read_bytes().startswith(MARK.encode())):
        return True
    return not workspace.exists() or (workspace.is_dir() and not any(workspace.iterdir()))


def _as_made(workspace: Path, made: Path, counts: dict[str, int]) -> bool:
    try:
        return bool(json.loads(made.read_text()) == _fingerprint(workspace, counts))
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
        InputError: it failed; its own output has said why.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    if subprocess.run(command, cwd=workspace, env=environment, check=False).returncode:
        raise InputError(f"dvc {arguments[0]} failed in {workspace}; its output above says why")


def show(workspace: Path) -> None:
    """Scores beside the yardsticks, some captions, and where to look next."""
    metrics = json.loads((workspace / "reports/metrics.json").read_text())
    made = json.loads((workspace / "reports/captions.json").read_text())
    references = read_table(workspace / "data/captions.csv").split("test").by_image
    right = sum(
        named_right(tokenize(one["caption"]), references[one["image_id"]][0]) for one in made
    )
    print(f"\nscores on {len(made)} test images\n{score_table(metrics)}")
    print(f"both shapes and colours named right: {right} of {len(made)}")
    print("constant: the best caption to say of every image; human: one person against the others")
    print("\nsome captions (* wrong)")
    shown = made[:SHOWN]
    for one in shown:
        expected = references[one["image_id"]]
        mark = " " if named_right(tokenize(one["caption"]), expected[0]) else "*"
        print(f" {mark} {one['caption']:44} of: {' '.join(expected[0])}")
    write_images(workspace, shown)
    activate = Path(sys.executable).parent / "activate"
    enter = f"source {os.path.relpath(activate)} && " if activate.exists() else ""
    print(f"""
where to look next
  {workspace}/reports/report.html   the whole run as a page: scores, curves, every image
  {workspace}/captions.png   these images with their captions
  {workspace}/reports/       all that was measured: metrics, history, captions, scores
  README.md            the real job, and how to compare experiments
and after `{enter}cd {workspace}`
  dvc plots show             curves of loss and scores by epoch, as a page
  showtell caption photos/   captions by the model made here""")


def write_images(workspace: Path, captions: list[dict[str, str]]) -> None:
    """The images of these captions as files, and all on one sheet."""
    photos = workspace / "photos"
    photos.mkdir(exist_ok=True)
    images = []
    with ImageArchive(workspace / "data/images.zip") as archive:
        for one in captions:
            content = archive.content(one["image_id"])
            (photos / one["image_id"]).write_bytes(content)
            images.append((decode_image(content, one["image_id"]), one["caption"]))
    contact_sheet(images).save(workspace / "captions.png")


def main(
    workspace: Annotated[Path, typer.Option(help="Where to run it.")] = Path(".demo"),
    images: Annotated[
        int, typer.Option(min=22, help="How many to draw; with few, captions are poor.")
    ] = sum(COUNTS.values()),
) -> None:
    """Run the whole graph on a small data set made here, offline."""
    judged = max(1, images * COUNTS["test"] // sum(COUNTS.values()))
    counts = {"train": images - 2 * judged, "val": judged, "test": judged}
    demo(Path.cwd(), workspace, counts)
