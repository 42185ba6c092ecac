"""The recipe of features: what must be the same in extraction, training and captioning."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.runtime.errors import InputError


@dataclass(frozen=True)
class Preprocessing:
    """The input that a CNN's weights expect; sizes in pixels."""

    resize: int  # the shorter side, before the centre crop
    size: int  # the side of the square crop
    interpolation: str  # Pillow's name of the resampling filter: bilinear, bicubic, …
    mean: tuple[float, float, float]  # of RGB scaled to 0..1
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})


@dataclass(frozen=True)
class View:
    """One frozen CNN and the preprocessing of its input."""

    backbone: str
    weights: str  # a torchvision name, a file's name, or random:SEED
    weights_digest: str
    preprocessing: Preprocessing

    @property
    def label(self) -> str:
        """A description for people; it marks untrained weights."""
        return f"{self.backbone} ({self.weights}{', UNTRAINED' if self.untrained else ''})"

    @property
    def untrained(self) -> bool:
        return self.weights.startswith("random:")


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything that determines what a feature means."""

    layer: str  # pooled or grid
    pooling: str  # of the pooled vector: mean of the grid, or class_token of a vision transformer
    crop_mode: str  # center or squash
    hflip: bool  # whether features are averaged over the image and its mirror image
    grid_size: int | None  # cells per side of the grid; None: as in the first view's CNN
    views: tuple[View, ...]  # their features are concatenated
    # For information, not compared: `extract` has checked that the features are equivalent.
    jpeg_decoder: str = "pillow"

    @property
    def untrained(self) -> bool:
        return any(view.untrained for view in self.views)

    @property
    def label(self) -> str:
        """A description for people."""
        several = len(self.views) > 1
        views = " + ".join(
            f"{view.label} at {view.preprocessing.size} px" if several else view.label
            for view in self.views
        )
        mirrored = ", mirrored" if self.hflip else ""
        decoder = ", nvJPEG" if self.jpeg_decoder == "nvjpeg" else ""
        pooling = ", class token" if self.pooling == "class_token" else ""
        return f"{views}, {self.layer}{pooling}, {self.crop_mode}{mirrored}{decoder}"

    @classmethod
    def from_json(cls, content: Any, where: str) -> "FeatureRecipe":
        """Parse the recipe of the file `where`; anything else is an InputError."""
        try:
            views = tuple(
                View(**{**view, "preprocessing": Preprocessing.from_json(view["preprocessing"])})
                for view in content["views"]
            )
            return cls(**{**content, "views": views})
        except (TypeError, KeyError, AttributeError, ValueError):
            raise InputError(f"{where} has no valid recipe of its features") from None


def require_same_recipe(features: FeatureRecipe, model: FeatureRecipe, where: str) -> None:
    """Raise an InputError unless features, from the file `where`, are of the kind that a model was
    trained on."""
    given, expected = _comparable_fields(features), _comparable_fields(model)
    for name in expected | given:
        if given.get(name) != expected.get(name):
            raise InputError(
                f"{where} does not fit the model: its {name} is {given.get(name)}, but the model "
                f"was trained on {expected.get(name)}; use the same backbone and extract params"
            )


def _comparable_fields(recipe: FeatureRecipe) -> dict[str, Any]:
    """Return what must agree, by name: the weights by their digest, not by their file's name."""
    fields = asdict(recipe)
    del fields["jpeg_decoder"]
    views = fields.pop("views")
    fields["number of views"] = len(views)
    for number, view in enumerate(views, start=1):
        del view["weights"]
        of = f" of view {number}" if len(views) > 1 else ""
        fields |= {f"{name}{of}": value for name, value in view.items()}
    return fields
