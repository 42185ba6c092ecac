"""Where tensors live, what precision pays there, and how a run is made repeatable."""

import os
from typing import Literal

import torch

from pipeline.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: DeviceName) -> torch.device:
    """The device that a param asks for; `auto` takes a GPU when there is one.

    Raises:
        InputError: `cuda` is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "params ask for device 'cuda' and no CUDA device is visible; "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or set device: auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The dtype of the heavy arithmetic; `auto` takes bfloat16 where the hardware multiplies it.

    Decided by what the processor says it has, never by a timing: two runs on one machine must
    choose alike.
    """
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Emulated bfloat16 (AVX2) is slower than float32.
        flags = torch.cpu.get_capabilities()
        native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def make_repeatable(seed: int) -> None:
    """Seed torch and allow only deterministic kernels.

    On a CPU the same inputs then give the same bytes. On a GPU they do on one machine with one
    release of torch and CUDA; no library promises more.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Finds reads of memory that nobody wrote; is dear (docs/performance.md), and we have none.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
