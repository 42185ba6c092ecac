"""What decides the bytes of features beside the images: the same for all workers of a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from pipeline.backbones.weights import BackboneWeights
from pipeline.config.schema import ExtractConfig
from pipeline.extraction.row_files import RowFile
from pipeline.extraction.stream import Rows
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.runtime.errors import InputError


class Extractor(Protocol):
    """Extracts rows of a feature cache."""

    plan: "ExtractionPlan"

    def extract(self, begin: int, end: int, files: Sequence[RowFile] = ()) -> Iterator[Rows]:
        """Yield the rows from `begin`, a multiple of the plan's batch size, to `end`, in order.

        Args:
            files: to which the values of rows may be written, instead of yielding them.

        Raises:
            InputError: an image cannot be used, or a feature is not finite.
        """


@dataclass(frozen=True)
class ExtractionPlan:
    """What a row's bytes depend on beside its image."""

    recipe: FeatureRecipe
    precision: str  # of the CNN
    batch_size: int  # the other images of its batch may change a row's last bits
    device: str  # its type
    package_versions: tuple[str, ...]  # of those that compute
    feature_shape: tuple[int, ...]  # (D,) or (H, W, D)

    def require_same(self, other: "ExtractionPlan") -> None:
        """
        Raises:
            InputError: the bytes of features would differ.
        """
        for field in fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if own != others:
                name = field.name.replace("_", " ")
                raise InputError(
                    f"this machine's {name} is {own}, another worker's {others}; all workers need "
                    "the same kind of device, files and package versions"
                )


def make_recipe(backbones: Sequence[BackboneWeights], config: ExtractConfig) -> FeatureRecipe:
    """Return the recipe of these weights and params: one view per backbone and image size."""
    return FeatureRecipe(
        layer=config.layer,
        pooling=config.pooling,
        crop_mode=config.crop_mode,
        hflip=config.hflip,
        grid_size=config.grid_size,
        views=tuple(
            View(
                backbone=backbone.name,
                weights=backbone.weights,
                weights_digest=backbone.digest,
                preprocessing=_rescale(backbone.preprocessing, size),
            )
            for backbone in backbones
            for size in config.image_size
        ),
    )


def _rescale(pre: Preprocessing, size: int | None) -> Preprocessing:
    """Change the crop's size; keep its proportion to the resized image."""
    if size is None:
        return pre
    return replace(pre, resize=round(pre.resize * size / pre.size), size=size)
