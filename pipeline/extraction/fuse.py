"""A frozen trunk made fast: each convolution does what follows it in the same pass.

A batch norm that never learns is a scale and a shift, which belong into the convolution's weights.
On a CPU oneDNN also applies the activation, and adds the shortcut, while a convolution's output is
still in the cache, and takes weights in the order in which it reads them (the operators that
torch.compile's CPU backend calls, without its minutes of C++). On a GPU cuDNN does the same for
ReLU. Values change by rounding only.
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as fold_batch_norms
from torch.fx.passes.shape_prop import ShapeProp

# oneDNN's name, scalars and algorithm of what may follow a convolution.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
}


def fuse(trunk: nn.Module, images: Tensor) -> nn.Module:
    """The same function, faster. `trunk` is in eval mode and not used any more afterwards.

    Args:
        images: an example, (B, 3, S, S), on the device and in the dtype to compute in. On a CPU
            that multiplies that dtype convolutions are made oneDNN's own; on a GPU the weights
            become of that dtype.

    Returns:
        The trunk itself where torch.fx cannot follow it.
    """
    try:
        graph = fold_batch_norms(trunk, inplace=True)
    except (fx.proxy.TraceError, TypeError):
        return trunk.to(images.dtype) if images.device.type == "cuda" else trunk
    assert isinstance(graph, fx.GraphModule)
    if images.device.type == "cpu" and _multiplied_by_onednn(images.dtype):
        ShapeProp(graph).propagate(images.float())
        _use_onednn(graph, images.dtype)
    if images.device.type == "cuda":
        return _on_cudnn(graph.to(images.dtype), images)
    return graph


def _multiplied_by_onednn(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


class OneDNNConv2d(nn.Module):
    """A convolution, then (x + other if given), then an activation, in one pass."""

    def __init__(self, conv: nn.Conv2d, input_shape: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._where = [
            *map(list, (conv.padding, conv.stride, conv.dilation)),
            conv.groups,
        ]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.to(dtype), *self._where, input_shape
        )
        self._bias = None if conv.bias is None else conv.bias.to(dtype)
        self.activation: tuple[str, list[float], str] = ("none", [], "")

    def forward(self, grid: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and for `other` the output's shape -> (B, D, H', W')."""
        weights = (self._weight, self._bias, *self._where)
        name, scalars, algorithm = self.activation
        grid = grid.to(self._dtype)
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(grid, *weights, name, scalars, algorithm)
        relu = None if name == "none" else name
        return torch.ops.mkldnn._convolution_pointwise.binary(
            grid, other.to(self._dtype), *weights, "add", 1.0, relu, scalars, algorithm
        )


def _use_onednn(graph: fx.GraphModule, dtype: torch.dtype) -> None:
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
            continue
        if isinstance(conv.padding, str):  # "same", "valid"
            continue
        fused = OneDNNConv2d(conv, list(node.args[0].meta["tensor_meta"].shape), dtype)
        follower = _only_user(node)
        shortcut = _residual_input(node, follower, order) if follower else None
        if shortcut is not None:
            node.args = (*node.args, shortcut)
            _merge_into(node, follower)
            follower = _only_user(node)
            allowed: set[type] = {nn.ReLU}
        else:
            allowed = set(_ACTIVATIONS)
        if follower is not None and (kind := _activation(follower, modules)) in allowed:
            fused.activation = _ACTIVATIONS[kind]
            _merge_into(node, follower)
        parent, _, name = str(node.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, fused)
    graph.graph.lint()
    graph.recompile()


class CudnnConv2d(nn.Module):
    """A convolution, then (x + other if given), then ReLU, in one kernel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._where: Any = [*map(list, (conv.stride, conv.padding, conv.dilation)), conv.groups]

    def forward(self, grid: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and for `other` the output's shape -> (B, D, H', W')."""
        if other is None:
            return torch.cudnn_convolution_relu(grid, self.weight, self.bias, *self._where)
        add = (grid, self.weight, other, 1.0, self.bias)
        return torch.cudnn_convolution_add_relu(*add, *self._where)


@torch.inference_mode()
def _on_cudnn(graph: fx.GraphModule, images: Tensor) -> fx.GraphModule:
    """The graph with cuDNN's fused convolutions, or as it is where cuDNN has no such kernel."""
    plain = copy.deepcopy(graph)
    ShapeProp(graph).propagate(images[:1])
    _use_cudnn(graph)
    try:
        graph(images)
        torch.cuda.synchronize(images.device)
    except RuntimeError:
        return plain
    return graph


def _use_cudnn(graph: fx.GraphModule) -> None:
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or conv.groups > 1:
            continue
        if isinstance(conv.padding, str):  # "same", "valid"
            continue
        follower = _only_user(node)
        shortcut = _residual_input(node, follower, order) if follower else None
        relu = _only_user(follower) if shortcut is not None and follower else follower
        if relu is None or _activation(relu, modules) is not nn.ReLU:
            continue
        if shortcut is not None:
            node.args = (*node.args, shortcut)
            _merge_into(node, follower)
        _merge_into(node, relu)
        parent, _, name = str(node.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, CudnnConv2d(conv))
    graph.graph.lint()
    graph.recompile()


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> type:
    if node.target is nn.functional.relu:
        return nn.ReLU
    return type(modules.get(str(node.target)))


def _residual_input(node: fx.Node, follower: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """What `follower` adds to the output of `node`, if it does, and if it is known by then."""
    if follower.target not in (operator.add, operator.iadd, torch.add) or follower.kwargs:
        return None
    others: list[Any] = [one for one in follower.args if one is not node]
    if len(follower.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    (other,) = others
    shapes = {tuple(one.meta["tensor_meta"].shape) for one in (node, other)}
    return other if len(shapes) == 1 and order[other] < order[node] else None


def _merge_into(node: fx.Node, follower: fx.Node | None) -> None:
    """`node` now does what `follower` did."""
    assert follower is not None
    follower.replace_all_uses_with(node)
    node.meta = follower.meta
    follower.graph.erase_node(follower)
