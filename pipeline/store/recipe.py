"""How features are made of a picture: what must be the same wherever features meet a model."""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import InputError


@dataclass(frozen=True)
class Preprocessing:
    """What a CNN's weights expect of a picture; sizes in pixels."""

    resize: int  # the shorter side, before the centre crop
    size: int  # a side of the square that the CNN sees
    interpolation: str  # Pillow's name of the resampling filter: bilinear, bicubic, …
    mean: tuple[float, float, float]  # of RGB scaled to 0..1
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything that decides what a feature means."""

    backbone: str
    weights: str  # a torchvision name, a file's name, or random:SEED
    weights_digest: str  # of the trunk's tensors
    layer: str  # pooled or grid
    framing: str  # crop or squash
    preprocessing: Preprocessing

    @property
    def untrained(self) -> bool:
        return self.weights.startswith("random:")

    @property
    def label(self) -> str:
        """For people, beside figures: untrained weights are called so."""
        untrained = ", UNTRAINED" if self.untrained else ""
        return f"{self.backbone} ({self.weights}{untrained}), {self.layer}, {self.framing}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, where: str) -> "FeatureRecipe":
        """
        Raises:
            InputError: `content` is no recipe; `where` says whose.
        """
        try:
            preprocessing = Preprocessing.from_json(content["preprocessing"])
            return cls(**{**content, "preprocessing": preprocessing})
        except (TypeError, KeyError, AttributeError, ValueError):
            raise InputError(f"{where} does not say how its features were made") from None


def require_same_recipe(features: FeatureRecipe, model: FeatureRecipe, where: str) -> None:
    """
    Raises:
        InputError: the features of `where` were not made as those that the model learned from.
    """
    for field in dataclasses.fields(FeatureRecipe):
        theirs, ours = getattr(features, field.name), getattr(model, field.name)
        # The same weights under another file name are the same weights.
        if field.name != "weights" and theirs != ours:
            raise InputError(
                f"{where} does not fit the model: its {field.name} is {_short(theirs)}, but the "
                f"model was trained on {_short(ours)}; use the same backbone and extract params"
            )


def _short(value: Any) -> str:
    return str(asdict(value) if isinstance(value, Preprocessing) else value)
