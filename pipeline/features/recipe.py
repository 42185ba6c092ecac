"""How features are made of an image: what must be the same wherever features meet a model."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.runtime.errors import InputError


@dataclass(frozen=True)
class Preprocessing:
    """What a CNN's weights expect of an image; sizes in pixels."""

    resize: int  # the shorter side, before the centre crop
    size: int  # a side of the square that the CNN sees
    interpolation: str  # Pillow's name of the resampling filter: bilinear, bicubic, …
    mean: tuple[float, float, float]  # of RGB scaled to 0..1
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})


@dataclass(frozen=True)
class View:
    """One frozen CNN, and what it is shown of an image."""

    backbone: str
    weights: str  # a torchvision name, a file's name, or random:SEED
    weights_digest: str  # of the trunk's tensors
    preprocessing: Preprocessing

    @property
    def label(self) -> str:
        """For people, beside figures: untrained weights are called so."""
        return f"{self.backbone} ({self.weights}{', UNTRAINED' if self.untrained else ''})"

    @property
    def untrained(self) -> bool:
        return self.weights.startswith("random:")


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything that decides what a feature means."""

    layer: str  # pooled or grid
    crop_mode: str  # crop or squash
    hflip: bool  # each view is the mean of what the CNN says of the image and its mirror image
    grid_size: int | None  # a side of the grid; None: as many as the first view's CNN gives
    views: tuple[View, ...]  # their features lie side by side
    # Whose pixels the CNN saw. Told, not compared: `extract` has tried that they are as good.
    jpeg_decoder: str = "pillow"

    @property
    def untrained(self) -> bool:
        return any(view.untrained for view in self.views)

    @property
    def label(self) -> str:
        """For people, beside figures."""
        several = len(self.views) > 1
        views = " + ".join(
            f"{view.label} at {view.preprocessing.size} px" if several else view.label
            for view in self.views
        )
        mirrored = ", mirrored" if self.hflip else ""
        decoder = ", nvJPEG" if self.jpeg_decoder == "nvjpeg" else ""
        return f"{views}, {self.layer}, {self.crop_mode}{mirrored}{decoder}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, where: str) -> "FeatureRecipe":
        """
        Raises:
            InputError: `content` is no recipe; `where` says whose.
        """
        try:
            views = tuple(
                View(**{**view, "preprocessing": Preprocessing.from_json(view["preprocessing"])})
                for view in content["views"]
            )
            return cls(**{**content, "views": views})
        except (TypeError, KeyError, AttributeError, ValueError):
            raise InputError(f"{where} does not say how its features were made") from None


def require_same_recipe(features: FeatureRecipe, model: FeatureRecipe, where: str) -> None:
    """
    Raises:
        InputError: the features of `where` were not made as those that the model learned from.
    """
    theirs, ours = _comparable_fields(features), _comparable_fields(model)
    for name in ours | theirs:
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"{where} does not fit the model: its {name} is {theirs.get(name)}, but the "
                f"model was trained on {ours.get(name)}; use the same backbone and extract params"
            )


def _comparable_fields(recipe: FeatureRecipe) -> dict[str, Any]:
    """What must agree, by name. The same weights under another file name are the same weights."""
    facts: dict[str, Any] = {
        "layer": recipe.layer,
        "crop_mode": recipe.crop_mode,
        "hflip": recipe.hflip,
        "grid_size": recipe.grid_size,
        "number of views": len(recipe.views),
    }
    for number, view in enumerate(recipe.views, start=1):
        of = f" of view {number}" if len(recipe.views) > 1 else ""
        facts[f"backbone{of}"] = view.backbone
        facts[f"weights_digest{of}"] = view.weights_digest
        facts[f"preprocessing{of}"] = asdict(view.preprocessing)
    return facts
