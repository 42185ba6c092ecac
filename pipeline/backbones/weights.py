"""The file of the frozen CNNs' weights: tensors, and a header that describes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.features.recipe import Preprocessing
from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.tensors import read_tensors, tensors_digest, write_tensors


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone's state dict, and where it came from."""

    name: str  # torchvision's name of the classifier
    weights: str  # the source: a torchvision name, a file's name, or random:SEED
    preprocessing: Preprocessing
    tensors: dict[str, Tensor]

    @property
    def digest(self) -> str:
        return tensors_digest(self.tensors)


def write_backbones(path: Path, backbones: Sequence[BackboneWeights]) -> None:
    """Write one or several backbones to one file."""
    headers: list[dict[str, Any]] = [
        {
            "name": backbone.name,
            "weights": backbone.weights,
            "preprocessing": asdict(backbone.preprocessing),
        }
        for backbone in backbones
    ]
    tensors = {
        f"{number}.{name}": tensor
        for number, backbone in enumerate(backbones)
        for name, tensor in backbone.tensors.items()
    }
    write_tensors(path, tensors, {"backbones": headers})


def read_backbones(path: Path) -> list[BackboneWeights]:
    """Read what `write_backbones` wrote; anything else is an ArtifactError."""
    tensors, content = read_tensors(path)
    backbones = []
    try:
        for number, header in enumerate(content["backbones"]):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            pre = Preprocessing.from_json(header["preprocessing"])
            backbones.append(BackboneWeights(str(header["name"]), str(header["weights"]), pre, own))
    except (KeyError, TypeError, AttributeError):
        raise ArtifactError(path, "does not hold a backbone's weights") from None
    return backbones
