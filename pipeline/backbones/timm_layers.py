"""Replace timm's layers by torch's own that compute the same, so that `fuse` recognises them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def use_torch_layers(backbone: nn.Module, images: Tensor) -> None:
    """Replace batch norms that include an activation, and convolutions with TensorFlow's "same"
    padding; in place.

    Args:
        backbone: in eval mode, with its weights.
        images: an example (B, 3, S, S): the padding depends on the size.
    """
    from timm.layers import BatchNormAct2d, Conv2dSame  # an optional dependency

    shapes: dict[nn.Module, torch.Size] = {}

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = inputs[0].shape

    same = [module for module in backbone.modules() if isinstance(module, Conv2dSame)]
    handles = [module.register_forward_pre_hook(note_input) for module in same]
    if same:
        with torch.inference_mode():
            backbone(images)
    for handle in handles:
        handle.remove()
    for name, module in list(backbone.named_modules()):
        if isinstance(module, Conv2dSame) and module in shapes:
            backbone.set_submodule(name, _static_padding(module, shapes[module]))
        elif type(module) is BatchNormAct2d:
            norm = nn.BatchNorm2d(module.num_features, module.eps).eval()
            norm.load_state_dict(module.state_dict())
            backbone.set_submodule(name, nn.Sequential(norm, module.act))


def _static_padding(conv: Any, input_shape: torch.Size) -> nn.Module:
    """A `Conv2dSame` with the padding that it has for inputs of this shape (B, C, H, W).

    "Same" padding puts an odd cell after the input. A kernel that begins with a row and a column of
    zeros has the same output with equal padding on both sides, which needs no copy of the input.
    """
    from timm.layers.padding import pad_same_arg

    left, right, top, bottom = pad_same_arg(
        list(input_shape[2:]), list(conv.kernel_size), conv.stride, conv.dilation
    )
    extra = (bottom - top, right - left)  # 0 or 1
    weight = conv.weight
    if any(extra):
        if tuple(conv.dilation) != (1, 1):
            return conv
        weight = F.pad(weight, (extra[1], 0, extra[0], 0))
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        tuple(weight.shape[2:]),
        conv.stride,
        (bottom, right),
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
    )
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if conv.bias is not None:
        plain.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return plain.eval()
