"""Caption images with a trained model.

>>> import showtell
>>> captioner = showtell.load("models")  # what `dvc repro` or `showtell export` made
>>> caption = captioner.caption("photo.jpg")
>>> caption.text == " ".join(caption.tokens)
True

A caption knows how sure the model is, of each word and of the whole:

>>> len(caption.tokens) == len(caption.token_probs)
True
>>> 0 < caption.confidence < 1
True

Paths, the bytes of a file, Pillow's images and arrays, one or many; in batches, so a list is faster
than a loop. A generator is read a few batches ahead, however long it is:

>>> from pathlib import Path
>>> for caption in captioner.stream(sorted(Path("photos").iterdir()), alternatives=1):
...     print(len(caption.alternatives))
1
1

Another search, by the names of the evaluate params:

>>> from dataclasses import replace
>>> wide = replace(captioner.search, beam_size=8, length_penalty=0.7)
>>> captioner.caption("photo.jpg", wide).score is not None
True
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
    """Load a captioner.

    Args:
        path: the folder with `captioner.safetensors` and `backbone.safetensors` that `dvc repro`
            made, or one that `showtell export` wrote; its digests are checked.
        device: `auto` uses a GPU if there is one.

    Raises:
        InputError: a file is missing or cannot be used.
    """
    return load_folder(Path(path), resolve_device(device))
