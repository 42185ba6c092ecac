"""The captioner of a folder: that which `dvc repro` makes, or which `showtell export` wrote."""

from pathlib import Path

import torch

from pipeline.captioning.captioner import Captioner

MODEL, BACKBONE, CONFIDENCE = "captioner.safetensors", "backbone.safetensors", "confidence.json"


def load_folder(folder: Path, device: torch.device) -> Captioner:
    """
    Raises:
        InputError: a file is missing or cannot be used.
    """
    return Captioner(folder / BACKBONE, [folder / MODEL], device, folder / CONFIDENCE)
