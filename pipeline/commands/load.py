"""Load the captioner that the options of a command name."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.captioning.captioner import Captioner
from pipeline.captioning.files import (
    BACKBONE,
    CONFIDENCE,
    MODEL,
    MODELS,
    NEIGHBORS,
    find_backbone,
    find_model,
)
from pipeline.captioning.folder import load_folder
from pipeline.comparison.revisions import resolve_revision
from pipeline.evaluation.confidence import read_confidence
from pipeline.runtime.errors import InputError


def fetch_revision(revision: str, folder: Path) -> None:
    """Write the captioner's files at a DVC revision to a folder.

    Raises:
        InputError: there is no such revision, or it lacks one of the files.
    """
    files = resolve_revision(revision)
    for name in (MODEL, BACKBONE, CONFIDENCE):
        (folder / name).write_bytes(files.read(f"models/{name}"))
    if read_confidence(folder / CONFIDENCE).search.consensus_weight:
        (folder / NEIGHBORS).write_bytes(files.read(f"models/{NEIGHBORS}"))


def load_captioner(
    models: Sequence[Path],
    backbone: Path | None,
    device: torch.device,
    revision: str | None = None,
) -> Captioner:
    """Load a folder's captioner, or a model file with its backbone; several for an ensemble.

    Raises:
        InputError: a file cannot be used, or an option would have no effect.
    """
    if revision is not None:
        if backbone or list(models) != [MODELS]:
            raise InputError("--rev has its own model and backbone; leave out --model, --backbone")
        with TemporaryDirectory() as folder:
            fetch_revision(revision, Path(folder))
            return load_folder(Path(folder), device)
    if len(models) == 1 and not models[0].is_file():
        if backbone:
            raise InputError(f"{models[0]} is a folder with a backbone; leave out --backbone")
        return load_folder(models[0], device)
    files = [find_model(model) for model in models]
    confidence = files[0].with_name(CONFIDENCE)
    return Captioner(backbone or find_backbone(files[0]), files, device, confidence)
