"""timm's image models without pooling and head, their preprocessing and weights.

A name is timm/MODEL, or timm/MODEL.TAG where the tag names pretrained weights. timm is an optional
dependency, imported when a name asks for it.
"""

import difflib
import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.timm_layers import use_torch_layers
from pipeline.features.recipe import Preprocessing
from pipeline.runtime.errors import InputError

PREFIX = "timm/"
INTERPOLATIONS = ("bilinear", "bicubic")  # those that preprocessing has


class TimmBackbone(nn.Module):
    """A model's `forward_features` as a grid.

    Its state dict is the model's own. Tokens (B, N, D) have those in front that are of no patch
    (class, registers); the others are the rows of a square grid.
    """

    def __init__(self, model: Any, name: str, size: int, class_token: bool) -> None:
        super().__init__()
        self.model = model.eval()
        # Models that normalise after pooling (timm's `fc_norm`) have not normalised their tokens.
        self._has_fc_norm = isinstance(getattr(model, "fc_norm", None), nn.LayerNorm)
        self._class_token = class_token
        with torch.inference_mode():
            features = model.forward_features(torch.zeros(1, 3, size, size))
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        D = model.num_features
        self._is_tokens = len(shape) == 3 and shape[2] == D
        self._is_nhwc = len(shape) == 4 and shape[1] != D and shape[3] == D
        has_class_token = self._is_tokens and getattr(model, "cls_token", None) is not None
        if class_token and not has_class_token:
            raise InputError(f"{name} has no class token; set extract.pooling: mean")
        if self._is_tokens:
            self._num_prefix = getattr(model, "num_prefix_tokens", int(has_class_token))
            num_patches = shape[1] - self._num_prefix
            self._side = math.isqrt(num_patches)
            is_grid = self._side**2 == num_patches
        else:
            is_grid = self._is_nhwc or (len(shape) == 4 and shape[1] == D)
        if not is_grid:
            raise InputError(
                f"{name} cannot be a backbone: for images of {size} px it gives "
                f"{shape or type(features).__name__}, not a square grid of {D} features"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), normalised -> the grid (B, D, H, W)."""
        features = self.model.forward_features(images)
        if self._has_fc_norm and self._is_tokens:
            features = self.model.fc_norm(features)
        if self._class_token:
            return features[:, 0].unsqueeze(-1).unsqueeze(-1)
        if self._is_tokens:
            return features[:, self._num_prefix :].mT.unflatten(2, (self._side, self._side))
        return features.permute(0, 3, 1, 2) if self._is_nhwc else features

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(*args, **kwargs)


def check_name(name: str) -> None:
    """Raise an InputError unless timm is installed and has a model of this name."""
    timm, (model, tag) = _import_timm(name), _split(name)
    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(PREFIX + other for other in similar)}?"
        hint = hint if similar else "for example timm/convnext_tiny"
        raise InputError(f"timm has no model '{model}'; {hint} (backbone.name)")
    if tag is not None:
        _pretrained_cfg(name, tag)


def canonical_name(name: str) -> str:
    """The name without the weights' tag."""
    return PREFIX + _split(name)[0]


def build(
    name: str,
    tensors: Mapping[str, Tensor] | None = None,
    own_size: int | None = None,
    size: int | None = None,
    class_token: bool = False,
) -> nn.Module:
    """Build a backbone; see `pipeline.backbones.backbone.Library`."""
    model = _import_timm(name).create_model(_split(name)[0], pretrained=False, num_classes=0)
    built_for = model.pretrained_cfg["input_size"][-1]
    own_size = own_size or built_for
    _set_input_size(model, built_for, own_size)
    if tensors is not None:
        model.load_state_dict(tensors)
    size = size or own_size
    _set_input_size(model, own_size, size)  # this interpolates the position embeddings
    backbone = TimmBackbone(model, name, size, class_token)
    if tensors is not None:
        use_torch_layers(backbone, torch.zeros(1, 3, size, size))
    return backbone


def min_size(name: str) -> int | None:
    """The smallest image side of the default weights' model, if known."""
    smallest = _pretrained_cfg(name, None).min_input_size
    return smallest[-1] if smallest else None


def default_preprocessing(name: str, weights: str) -> Preprocessing:
    """The preprocessing of these weights: a tag, or else those of the name's tag or the default."""
    timm, tags = _import_timm(name), _tags(name)
    cfg = _pretrained_cfg(name, weights if weights in tags else None)
    config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["interpolation"] not in INTERPOLATIONS:
        raise InputError(
            f"{name} takes images of {channels} x {height} x {width}, resized by "
            f"{config['interpolation']}; only RGB squares by {' or '.join(INTERPOLATIONS)} are "
            "supported (backbone.name)"
        )
    return Preprocessing(
        resize=math.floor(height / config["crop_pct"]),
        size=height,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def fetch(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    """Fetch the weights of a tag, or `DEFAULT`; return the tag, and the state dict.

    timm fetches them to its own cache, verifies them and converts their names.
    """
    timm = _import_timm(name)
    cfg = _pretrained_cfg(name, None if weights == "DEFAULT" else weights)
    if not cfg.has_weights:
        raise InputError(
            f"timm has no pretrained weights of {name}; set backbone.weights to the path of a "
            "state dict, or to random"
        )
    tag = cfg.tag or "DEFAULT"
    model = f"{_split(name)[0]}.{cfg.tag}" if cfg.tag else _split(name)[0]
    timm.models.set_pretrained_check_hash(True)
    timm.models.set_pretrained_download_progress(sys.stderr.isatty())
    try:
        state = timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of timm, the hub, its HTTP client, torch and safetensors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot fetch the weights {tag} of {name} ({reason}); set backbone.weights to the "
            "path of a state dict instead"
        ) from None
    return tag, state


def _import_timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise InputError(
            f"{name} needs the package timm; run: pip install timm (backbone.name)"
        ) from None
    return timm


def _split(name: str) -> tuple[str, str | None]:
    """The model's name, and the tag if there is one."""
    model, _, tag = name.removeprefix(PREFIX).partition(".")
    return model, tag or None


def _tags(name: str) -> dict[str, Any]:
    """timm's pretrained configurations of a model by their tags, the default one first."""
    model, _ = _split(name)
    timm = _import_timm(name)
    configs = {cfg.tag or "": cfg for cfg in timm.models.get_arch_pretrained_cfgs(model).values()}
    default = timm.get_pretrained_cfg(model)
    return {default.tag or "": default, **configs}


def _pretrained_cfg(name: str, tag: str | None) -> Any:
    """timm's pretrained configuration of a tag; by default the name's own, or the model's first."""
    model, own_tag = _split(name)
    tags = _tags(name)
    if tag is not None and own_tag not in (None, tag):
        raise InputError(
            f"backbone.name has the tag {own_tag} and backbone.weights is '{tag}'; set one of them"
        )
    chosen = tag or own_tag or next(iter(tags))
    if chosen not in tags:
        allowed = ", ".join(filter(None, tags)) or "none"
        raise InputError(
            f"{PREFIX}{model} has no weights '{chosen}'; timm's tags are: {allowed}; or DEFAULT, "
            "random, or a file (.pth .pt .safetensors) (backbone.weights)"
        )
    return tags[chosen]


def _set_input_size(model: Any, before: int, size: int) -> None:
    """Prepare a model that is built for one image size for another; most CNNs take any."""
    if size != before and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)
