"""Caption images with a trained model.

import showtell

captioner = showtell.load("models")
print(captioner.caption("photo.jpg"))
for caption in captioner.stream(Path("photos").glob("*.jpg"), alternatives=2):
    print(caption.text, caption.confidence, caption.alternatives)
"""

from pathlib import Path

from pipeline import __version__
from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.folder import load_folder
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.runtime.device import DeviceName, resolve_device
from pipeline.runtime.errors import InputError

__all__ = ["BeamSearchConfig", "Caption", "Captioner", "InputError", "__version__", "load"]


def load(path: str | Path = "models", device: DeviceName = "auto") -> Captioner:
    """Load the captioner that `dvc repro` made.

    Args:
        path: the folder with `captioner.safetensors` and `backbone.safetensors`, or one that
            `showtell export` wrote.
        device: `auto` uses a GPU if there is one.

    Raises:
        InputError: a file is missing or cannot be used.
    """
    return load_folder(Path(path), resolve_device(device))
