"""The frozen CNN's weights as an artifact: trunk tensors, and what they are."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.store.recipe import Preprocessing
from pipeline.store.tensors import read_tensors, tensors_digest, write_tensors


@dataclass(frozen=True)
class Backbone:
    """A trunk's weights, by the trunk's own names."""

    name: str  # torchvision's name of the classifier
    weights: str  # where they came from: a torchvision name, a file's name, or random:SEED
    preprocessing: Preprocessing
    tensors: dict[str, Tensor]

    @property
    def digest(self) -> str:
        return tensors_digest(self.tensors)


def write_backbone(path: Path, backbone: Backbone) -> None:
    header: dict[str, Any] = {
        "name": backbone.name,
        "weights": backbone.weights,
        "preprocessing": asdict(backbone.preprocessing),
        "digest": backbone.digest,
    }
    write_tensors(path, backbone.tensors, header)


def read_backbone(path: Path) -> Backbone:
    """
    Raises:
        InputError: the file is absent, damaged, or no backbone.
    """
    tensors, header = read_tensors(path, made_by="backbone")
    try:
        backbone = Backbone(
            str(header["name"]),
            str(header["weights"]),
            Preprocessing.from_json(header["preprocessing"]),
            tensors,
        )
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is no backbone; run the stage 'backbone' again") from None
    if backbone.digest != header.get("digest"):
        raise InputError(f"{path}: the weights are not those it says; run 'backbone' again")
    return backbone
