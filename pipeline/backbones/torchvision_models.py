"""torchvision's classifiers without their pooling and head, their preprocessing and weights."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from ssl import SSLError
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from pipeline.features.recipe import Preprocessing
from pipeline.runtime.errors import InputError

# With torchvision's weights these models renormalise their input from ImageNet's mean and std to
# (x - 0.5) / 0.5 (torchvision's `transform_input`); here that is part of the preprocessing.
TRANSFORM_INPUT_MODELS = ("googlenet", "inception_v3")

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


class ClassifierBackbone(nn.Module):
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
    """A vision transformer without its head: the patch tokens as a grid, or the class token."""

    def __init__(self, model: Any, class_token: bool) -> None:
        super().__init__()
        self._class_token = class_token
        self.class_token, self.conv_proj = model.class_token, model.conv_proj
        self.encoder = model.encoder

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images)  # (B, D, H, W)
        B, D, H, W = patches.shape
        tokens = torch.cat(
            [self.class_token.expand(B, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )  # (B, 1 + H * W, D)
        encoded = self.encoder(tokens)
        if self._class_token:
            return encoded[:, 0].reshape(B, D, 1, 1)
        return encoded[:, 1:].transpose(1, 2).reshape(B, D, H, W)


def check_name(name: str) -> None:
    """Raise an InputError unless torchvision has an image classifier of this name."""
    names = torchvision.models.list_models(module=torchvision.models)  # without quantised ones
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "for example resnet50"
        raise InputError(
            f"torchvision has no image classifier '{name}'; {hint} (backbone.name; timm's models "
            "are named timm/NAME)"
        )


def canonical_name(name: str) -> str:
    return name


def build(
    name: str,
    tensors: Mapping[str, Tensor] | None = None,
    own_size: int | None = None,
    size: int | None = None,
    class_token: bool = False,
) -> nn.Module:
    """Build a backbone; see `pipeline.backbones.backbone.Library`."""
    builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": False}
    if size is not None and name.startswith("vit_"):
        extra = {"image_size": size}
    if size is not None and name.startswith("maxvit"):
        extra = {"input_size": (size, size)}
    backbone = remove_head(builder(weights=None, **extra), name, class_token)
    if tensors is not None:
        backbone.load_state_dict(tensors)
    return backbone


def min_size(name: str) -> int | None:
    """The smallest image side that the default weights' model takes."""
    return min(torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"])


def default_preprocessing(name: str, weights: str) -> Preprocessing:
    """The preprocessing of torchvision's named weights, or of the model's default ones."""
    known = torchvision.models.get_model_weights(name)
    entry = known[weights] if weights in known.__members__ else known.DEFAULT
    transforms: Any = entry.transforms()
    transforms_input = name in TRANSFORM_INPUT_MODELS
    return Preprocessing(
        resize=transforms.resize_size[0],
        size=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=(0.5,) * 3 if transforms_input else tuple(transforms.mean),
        std=(0.5,) * 3 if transforms_input else tuple(transforms.std),
    )


def fetch(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    """Fetch the named weights, or `DEFAULT`; return their name, and the state dict."""
    known = torchvision.models.get_model_weights(name)
    allowed = ["DEFAULT", *known.__members__]
    if weights not in allowed:
        raise InputError(
            f"{name} has no weights '{weights}'; allowed are {', '.join(dict.fromkeys(allowed))}, "
            "random, or a file (.pth .pt .safetensors) (backbone.weights)"
        )
    chosen = known.DEFAULT if weights == "DEFAULT" else known[weights]
    try:
        # check_hash: the URL contains the beginning of the file's SHA-256.
        return chosen.name, chosen.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, TimeoutError, ConnectionError, SSLError, HTTPException) as error:
        raise InputError(
            f"cannot fetch {chosen.url} ({getattr(error, 'reason', error)}); "
            "set backbone.weights to the path of a state dict instead"
        ) from None
    except RuntimeError as error:
        raise InputError(
            f"{chosen.url} is not the file that torchvision expects ({error})"
        ) from None


def remove_head(model: nn.Module, name: str, class_token: bool = False) -> nn.Module:
    """Return the part of a classifier before its pooling, or a transformer's class token."""
    family = type(model).__name__
    if family == "VisionTransformer":
        return ViTBackbone(model, class_token)
    if class_token:
        raise InputError(f"{name} has no class token; set extract.pooling: mean")
    if family == "DenseNet":
        return ClassifierBackbone(model, ["features"], nn.ReLU())
    if family not in _CHILDREN:
        raise InputError(
            f"{name} ({family}) is not supported as a backbone; supported are DenseNet, "
            f"VisionTransformer, {', '.join(sorted(_CHILDREN))}"
        )
    return ClassifierBackbone(model, _CHILDREN[family].split())
