"""Backbones: torchvision's classifiers without their pooling and head.

A backbone outputs the last convolutional grid (B, D, H, W). The pooled vector is the grid's mean
over H and W, which is the input of the classifier's own head in all families except VGG, AlexNet
and the vision transformers.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pipeline.backbones.weights import BackboneWeights
from pipeline.runtime.errors import InputError

# By class name, the children before the pooling, of models whose forward calls them in sequence.
_CHILDREN = {
    "ResNet": "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4",
    "RegNet": "stem trunk_output",
    "ShuffleNetV2": "conv1 maxpool stage2 stage3 stage4 conv5",
    "MNASNet": "layers",
    "SwinTransformer": "features norm permute",
    "MaxVit": "stem blocks",
    "GoogLeNet": "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a "
    "inception4b inception4c inception4d inception4e maxpool4 inception5a inception5b",
    "Inception3": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 "
    "maxpool2 Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a "
    "Mixed_7b Mixed_7c",
    "AlexNet": "features",
    "ConvNeXt": "features",
    "EfficientNet": "features",
    "MobileNetV2": "features",
    "MobileNetV3": "features",
    "SqueezeNet": "features",
    "VGG": "features",
}


class Backbone(nn.Module):
    """The children of a classifier before its pooling, under their own names.

    So its state dict has a subset of the classifier's keys.
    """

    def __init__(self, model: nn.Module, children: Sequence[str], *post: nn.Module) -> None:
        super().__init__()
        self._order = tuple(children)
        for name in children:
            self.add_module(name, getattr(model, name))
        self.post = nn.Sequential(*post)  # without weights

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), normalised -> the last grid (B, D, H, W)."""
        grid = images
        for name in self._order:
            child = getattr(self, name)
            for module in child if isinstance(child, nn.ModuleList) else [child]:
                grid = module(grid)
        return self.post(grid)


class ViTBackbone(nn.Module):
    """A vision transformer without its head: the patch tokens, as a grid."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.class_token, self.conv_proj = model.class_token, model.conv_proj
        self.encoder = model.encoder

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images)  # (B, D, H, W)
        B, D, H, W = patches.shape
        tokens = torch.cat(
            [self.class_token.expand(B, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )  # (B, 1 + H * W, D)
        encoded = self.encoder(tokens)[:, 1:]
        return encoded.transpose(1, 2).reshape(B, D, H, W)


def check_name(name: str) -> None:
    """Raise an InputError unless torchvision has an image classifier of this name."""
    names = torchvision.models.list_models(module=torchvision.models)  # without quantised ones
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "for example resnet50"
        raise InputError(f"torchvision has no image classifier '{name}'; {hint} (backbone.name)")


def build_backbone(name: str, input_size: int | None = None) -> nn.Module:
    """Build the backbone of a torchvision classifier, with random weights, in eval mode.

    Args:
        name: as in `torchvision.models.list_models()`.
        input_size: the image side in pixels, for models that are built for one size (vision
            transformers, MaxViT); None for the size of their own weights.

    Raises:
        InputError: there is no such classifier, or its family is not supported.
    """
    check_name(name)
    builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": False}
    if input_size is not None and name.startswith("vit_"):
        extra = {"image_size": input_size}
    if input_size is not None and name.startswith("maxvit"):
        extra = {"input_size": (input_size, input_size)}
    try:
        model = builder(weights=None, **extra)
    except ValueError as error:
        raise InputError(f"{name} cannot be built for {input_size} px: {error}") from None
    return remove_head(model, name).eval().requires_grad_(False)


def load_backbone(weights: BackboneWeights, size: int) -> nn.Module:
    """Build a backbone with these weights, for images of `size` x `size` pixels.

    Raises:
        InputError: the weights are of another model, or the model does not support this size.
    """
    name, own_size = weights.name, weights.preprocessing.size
    check_name(name)
    try:
        backbone = build_backbone(name, input_size=size)
        backbone.load_state_dict(weights.tensors)
        if size < own_size:  # too small a grid only fails in the forward pass
            with torch.inference_mode():
                backbone(torch.zeros(1, 3, size, size))
    except (InputError, RuntimeError, AssertionError) as error:  # torchvision raises all of these
        if size == own_size:
            raise InputError(f"the weights do not fit {name} ({error})") from None
        (min_size, *_) = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
        hint = f"the minimum is {min_size} px" if size < min_size < own_size else "use that size"
        raise InputError(
            f"{name} does not support images of {size} px, its weights are for {own_size}; "
            f"{hint} (extract.image_size: {own_size}, or null)"
        ) from None
    return backbone


def remove_head(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a classifier before its pooling."""
    family = type(model).__name__
    if family == "VisionTransformer":
        return ViTBackbone(model)
    if family == "DenseNet":
        return Backbone(model, ["features"], nn.ReLU())
    if family not in _CHILDREN:
        raise InputError(
            f"{name} ({family}) is not supported as a backbone; supported are DenseNet, "
            f"VisionTransformer, {', '.join(sorted(_CHILDREN))}"
        )
    return Backbone(model, _CHILDREN[family].split())


def global_avg_pool(grid: Tensor) -> Tensor:
    """Return the pooled vector (B, D) of a grid (B, D, H, W)."""
    return grid.mean(dim=(2, 3))
