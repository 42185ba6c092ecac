"""All that a training's next step depends on, as tensors by name and a JSON header, and back."""

from typing import Any

import torch
from torch import Tensor, nn

TrainerState = tuple[dict[str, Tensor], dict[str, Any]]


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


def rng_state_dict(device: torch.device) -> dict[str, Tensor]:
    """torch's own generators, of which dropout draws."""
    rng = {"chance/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["chance/cuda"] = torch.cuda.get_rng_state(device)
    return rng


def load_rng_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["chance/cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["chance/cuda"], device)
