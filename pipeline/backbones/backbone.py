"""Backbones: frozen image models without their pooling and head.

A backbone outputs the last grid of features (B, D, H, W). The pooled vector is the grid's mean over
H and W, which is the input of the classifier's own head in most families of CNNs; or it is a vision
transformer's class token, which then is the whole grid (B, D, 1, 1).
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.backbones import timm_models, torchvision_models
from pipeline.backbones.weights import BackboneWeights
from pipeline.features.recipe import Preprocessing
from pipeline.runtime.errors import InputError


class Library(Protocol):
    """What a library of image models must provide: `torchvision_models` and `timm_models` do."""

    def check_name(self, name: str) -> None:
        """Raise an InputError unless the library has a model of this name."""

    def canonical_name(self, name: str) -> str:
        """The model's name without the weights' tag."""

    def build(
        self,
        name: str,
        tensors: Mapping[str, Tensor] | None = None,
        own_size: int | None = None,
        size: int | None = None,
        class_token: bool = False,
    ) -> nn.Module:
        """Build a backbone.

        Args:
            tensors: its state dict; None for random weights.
            own_size: the image side in pixels that these weights are for; None for the default.
            size: the image side to build it for; None for `own_size`.
            class_token: output the class token as a grid of one cell.

        Raises:
            InputError: there is no such model, or no such output.
        """

    def min_size(self, name: str) -> int | None:
        """The smallest image side in pixels, if known."""

    def default_preprocessing(self, name: str, weights: str) -> Preprocessing:
        """The preprocessing of these weights, or of the default ones if they are not known."""

    def fetch(self, name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
        """Fetch the named weights, or `DEFAULT`; return their name, and the state dict.

        Raises:
            InputError: there are no such weights, or they cannot be fetched.
        """


def library_of(name: str) -> Library:
    """timm for names that begin with `timm/`, else torchvision."""
    return timm_models if name.startswith(timm_models.PREFIX) else torchvision_models


def build_backbone(name: str, own_size: int | None = None) -> nn.Module:
    """Build a backbone with random weights, in eval mode.

    Args:
        name: as in `torchvision.models.list_models()`, or timm/NAME.
        own_size: the image side in pixels that the weights are for; None for the default.

    Raises:
        InputError: there is no such model, or its family is not supported.
    """
    library = library_of(name)
    library.check_name(name)
    return library.build(name, own_size=own_size).eval().requires_grad_(False)


def load_backbone(weights: BackboneWeights, size: int, class_token: bool = False) -> nn.Module:
    """Build a backbone with these weights, for images of `size` x `size` pixels.

    Raises:
        InputError: the weights are of another model, or the model does not support this size, or
            has no class token.
    """
    name, own_size, library = weights.name, weights.preprocessing.size, library_of(weights.name)
    library.check_name(name)
    try:
        backbone = library.build(name, weights.tensors, own_size, size, class_token)
        backbone.eval().requires_grad_(False)
        if size < own_size:  # too small a grid only fails in the forward pass
            with torch.inference_mode():
                backbone(torch.zeros(1, 3, size, size))
    except InputError:
        raise
    except Exception as error:  # torchvision and timm raise many types
        if size == own_size:
            raise InputError(f"the weights do not fit {name} ({error})") from None
        min_size = library.min_size(name)
        too_small = min_size is not None and size < min_size < own_size
        hint = f"the minimum is {min_size} px" if too_small else "use that size"
        raise InputError(
            f"{name} does not support images of {size} px, its weights are for {own_size}; "
            f"{hint} (extract.image_size: {own_size}, or null)"
        ) from None
    return backbone


def global_avg_pool(grid: Tensor) -> Tensor:
    """Return the pooled vector (B, D) of a grid (B, D, H, W)."""
    return grid.mean(dim=(2, 3))
