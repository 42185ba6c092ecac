"""Caption images with a trained model.

import showtell

captioner = showtell.load("models")
print(captioner.caption("photo.jpg"))
"""

from pathlib import Path

from pipeline import __version__
from pipeline.captioner import BACKBONE, MODEL, Captioner
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.runtime.device import DeviceName, resolve_device
from pipeline.runtime.errors import InputError

__all__ = ["BeamSearchConfig", "Captioner", "InputError", "__version__", "load"]


def load(path: str | Path = "models", device: DeviceName = "auto") -> Captioner:
    """Load the captioner that `dvc repro` made.

    Args:
        path: the folder with `captioner.safetensors` and `backbone.safetensors`.
        device: `auto` uses a GPU if there is one.

    Raises:
        InputError: a file is missing or cannot be used.
    """
    folder = Path(path)
    return Captioner(folder / BACKBONE, [folder / MODEL], resolve_device(device))
