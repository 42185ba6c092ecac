"""Modules and random state as tensors by name, for checkpoints."""

import torch
from torch import Tensor, nn


def save_module(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict, with `name/` before each key."""
    return {f"{name}/{key}": value for key, value in module.state_dict().items()}


def load_module(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    prefix = f"{name}/"
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    module.load_state_dict(own)


def rng_state_dict(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators, which dropout uses."""
    state = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng/cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_rng_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["rng/cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
