"""All that a training's next step depends on, as tensors by name and a JSON header, and back."""

from typing import Any

import torch
from torch import Tensor, nn

Saved = tuple[dict[str, Tensor], dict[str, Any]]


def save_module(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Its state dict, under `name/`."""
    return {f"{name}/{key}": value for key, value in module.state_dict().items()}


def load_module(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict(
        {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }
    )


def save_optimizer(optimizer: torch.optim.Optimizer) -> Saved:
    """Moments and step counts as tensors; learning rates and the like as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer/{number}/{key}": value
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, {"optimizer": state["param_groups"]}


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": header["optimizer"]})


def save_chance(device: torch.device) -> dict[str, Tensor]:
    """torch's own generators, of which dropout draws."""
    chance = {"chance/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        chance["chance/cuda"] = torch.cuda.get_rng_state(device)
    return chance


def load_chance(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["chance/cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["chance/cuda"], device)
