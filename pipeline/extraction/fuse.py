"""Speed up a frozen backbone: fuse each convolution with the operations that follow it.

Frozen batch norms are folded into the convolutions' weights. On a CPU, oneDNN also applies the
activation and adds the residual while the convolution's output is still in the cache, and gets its
weights in the memory order that it reads (torch.compile's CPU backend calls the same operators, but
compiles C++ for minutes). On a GPU, cuDNN does the same for ReLU. Values change by rounding only.
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as fold_batch_norms
from torch.fx.passes.shape_prop import ShapeProp

# oneDNN's name, scalars and algorithm of each activation.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
}


def fuse(backbone: nn.Module, images: Tensor) -> nn.Module:
    """Return the same function, faster; or `backbone` itself if torch.fx cannot trace it.

    Args:
        backbone: in eval mode; it must not be used afterwards.
        images: an example (B, 3, S, S), on the device and in the dtype to compute in. On a CPU
            that supports the dtype, convolutions become oneDNN's; on a GPU, the weights are cast
            to it.
    """
    try:
        graph = fold_batch_norms(backbone, inplace=True)
    except (fx.proxy.TraceError, TypeError):
        return backbone.to(images.dtype) if images.device.type == "cuda" else backbone
    assert isinstance(graph, fx.GraphModule)
    if images.device.type == "cpu" and _onednn_supports(images.dtype):
        ShapeProp(graph).propagate(images.float())
        _use_onednn(graph, images.dtype)
    if images.device.type == "cuda":
        return _on_cudnn(graph.to(images.dtype), images)
    return graph


def _onednn_supports(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


class OneDNNConv2d(nn.Module):
    """A convolution, plus a residual if given, then an activation, in one pass."""

    def __init__(self, conv: nn.Conv2d, input_shape: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.to(dtype), *geometry, input_shape
        )
        bias = None if conv.bias is None else conv.bias.to(dtype)
        self._conv = (weight, bias, *geometry)
        self.activation: tuple[str, list[float], str] = ("none", [], "")

    def forward(self, grid: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), residual (B, D, H', W') -> (B, D, H', W')."""
        name, scalars, algorithm = self.activation
        grid = grid.to(self._dtype)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                grid, *self._conv, name, scalars, algorithm
            )
        relu = None if name == "none" else name
        return torch.ops.mkldnn._convolution_pointwise.binary(
            grid, residual.to(self._dtype), *self._conv, "add", 1.0, relu, scalars, algorithm
        )


def _use_onednn(graph: fx.GraphModule, dtype: torch.dtype) -> None:
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node, conv in _convolutions(graph, modules):
        fused = OneDNNConv2d(conv, _shape(node.args[0]), dtype)
        follower = _only_user(node)
        residual = _residual_input(node, follower, order) if follower else None
        allowed = set(_ACTIVATIONS) if residual is None else {nn.ReLU}
        if residual is not None:
            node.args = (*node.args, residual)
            _merge_into(node, follower)
            follower = _only_user(node)
        if follower is not None and (kind := _activation(follower, modules)) in allowed:
            fused.activation = _ACTIVATIONS[kind]
            _merge_into(node, follower)
        graph.set_submodule(str(node.target), fused)
    graph.graph.lint()
    graph.recompile()


class CudnnConv2d(nn.Module):
    """A convolution, plus a residual if given, then ReLU, in one kernel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        stride, padding, dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self._geometry: Any = (stride, padding, dilation, conv.groups)

    def forward(self, grid: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), residual (B, D, H', W') -> (B, D, H', W')."""
        if residual is None:
            return torch.cudnn_convolution_relu(grid, self.weight, self.bias, *self._geometry)
        return torch.cudnn_convolution_add_relu(
            grid, self.weight, residual, 1.0, self.bias, *self._geometry
        )


@torch.inference_mode()
def _on_cudnn(graph: fx.GraphModule, images: Tensor) -> fx.GraphModule:
    """Use cuDNN's fused convolutions; return the graph as it is if cuDNN has no such kernel."""
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
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node, conv in _convolutions(graph, modules):
        if conv.groups > 1:
            continue
        follower = _only_user(node)
        residual = _residual_input(node, follower, order) if follower else None
        relu = _only_user(follower) if residual is not None and follower else follower
        if relu is None or _activation(relu, modules) is not nn.ReLU:
            continue
        if residual is not None:
            node.args = (*node.args, residual)
            _merge_into(node, follower)
        _merge_into(node, relu)
        graph.set_submodule(str(node.target), CudnnConv2d(conv))
    graph.graph.lint()
    graph.recompile()


def _convolutions(
    graph: fx.GraphModule, modules: dict[str, nn.Module]
) -> list[tuple[fx.Node, nn.Conv2d]]:
    """Return the convolutions with plain zero padding, given as numbers, whose weights nothing else
    reads."""
    convs = []
    reads = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    owners = {name.rpartition(".")[0] for name in reads}
    for node in graph.graph.nodes:
        if str(node.target) in owners:
            continue
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros":
            convs += [] if isinstance(conv.padding, str) else [(node, conv)]
    return convs


def _shape(node: Any) -> list[int]:
    return list(node.meta["tensor_meta"].shape)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> type:
    if node.target is nn.functional.relu:
        return nn.ReLU
    return type(modules.get(str(node.target)))


def _residual_input(node: fx.Node, follower: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """Return what `follower` adds to `node`'s output, if it is computed before `node`."""
    if follower.target not in (operator.add, operator.iadd, torch.add) or follower.kwargs:
        return None
    others: list[Any] = [summand for summand in follower.args if summand is not node]
    if len(follower.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    (residual,) = others
    return residual if _shape(residual) == _shape(node) and order[residual] < order[node] else None


def _merge_into(node: fx.Node, follower: fx.Node | None) -> None:
    """Let `node` take the place of `follower`."""
    assert follower is not None
    follower.replace_all_uses_with(node)
    node.meta = follower.meta
    follower.graph.erase_node(follower)
