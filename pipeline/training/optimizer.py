"""AdamW over a decoder's weights, its learning rate from outside, and its state as tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime.checkpoint import State


def adamw(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Loshchilov and Hutter, ICLR 2019. On a GPU it can be part of a CUDA graph."""
    parameters = list(module.parameters())
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(
        parameters,
        # A graph reads it from the device, each time that it runs.
        lr=torch.tensor(learning_rate, device=device) if on_gpu else learning_rate,
        weight_decay=weight_decay,
        fused=True,
        capturable=on_gpu,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def save_optimizer(optimizer: torch.optim.Optimizer) -> State:
    """Moments and step counts as tensors; learning rates and the like as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer/{number}/{key}": value
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return tensors, {"optimizer": groups}


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = value
    own = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": header["optimizer"]})
    for group, lr in zip(optimizer.param_groups, own, strict=True):
        if isinstance(lr, Tensor):
            group["lr"] = lr.fill_(group["lr"])
