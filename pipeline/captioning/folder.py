"""The captioner of a folder: that which `dvc repro` makes, or which `showtell export` wrote."""

from pathlib import Path
from typing import Any

import torch

from pipeline.captioning.captioner import Captioner
from pipeline.captioning.files import (
    BACKBONE,
    CONFIDENCE,
    CONFIG,
    EXPORTED_MODEL,
    NEIGHBORS,
    find_model,
)
from pipeline.evaluation.confidence import parse_confidence, parse_search
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import file_digest, read_checked_json

FORMAT = 1


def load_folder(folder: Path, device: torch.device) -> Captioner:
    """Load a folder's captioner; of an exported one the digests are checked first.

    Raises:
        InputError: it is not such a folder, or a file is missing, damaged, or of another version.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; name its folder")
    model = find_model(folder)
    if model.name == EXPORTED_MODEL:
        return _load_exported(folder, device)
    return Captioner(folder / BACKBONE, [model], device, folder / CONFIDENCE)


def _load_exported(folder: Path, device: torch.device) -> Captioner:
    config = _read_config(folder / CONFIG)
    try:
        search = parse_search(config["search"], where=folder / CONFIG)
        names = [EXPORTED_MODEL, BACKBONE, *([NEIGHBORS] if search.consensus_weight else [])]
        digests = [(name, config["files"][name]) for name in names]
        stored = config["confidence"]
        confidence = parse_confidence(stored, where=folder / CONFIG) if stored else None
    except (KeyError, TypeError, ArtifactError):
        raise InputError(f"{folder / CONFIG} is not that of an exported captioner") from None
    for name, digest in digests:
        path = folder / name
        if not path.is_file() or file_digest(path, "sha256") != digest:
            raise InputError(f"{path} is not the file that was exported; copy the folder again")
    return Captioner(folder / BACKBONE, [folder / EXPORTED_MODEL], device, confidence, search)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_checked_json(path)
    except ArtifactError:
        raise InputError(f"{path} is damaged, or not that of an exported captioner") from None
    if config.get("format") != FORMAT:
        raise InputError(f"{path} is of another version of showtell: {config.get('showtell')}")
    return config
