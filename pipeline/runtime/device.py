"""Where tensors live, what precision pays there, and how a run is made repeatable."""

import os
from typing import Literal

import torch

from pipeline.runtime.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: DeviceName) -> torch.device:
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


def fast_dtypes(device: torch.device) -> list[torch.dtype]:
    """What the device multiplies faster than float32, the one that loses least first.

    Decided by what the processor says it has, never by a timing: two runs on one machine must
    choose alike.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return [
            *([torch.float16] if capability >= (7, 0) else []),
            *([torch.bfloat16] if capability >= (8, 0) else []),
        ]
    # Emulated bfloat16 (AVX2) is slower than float32.
    flags = torch.cpu.get_capabilities()
    return [torch.bfloat16] if flags.get("avx512_bf16") or flags.get("amx_bf16") else []


def resolve_dtype(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """The dtype of the heavy arithmetic; `auto` takes bfloat16 where the hardware multiplies it:
    unlike float16 it has float32's range, which gradients need.

    Raises:
        InputError: bfloat16 is asked for on a CPU without it.
    """
    fast = torch.bfloat16 in fast_dtypes(device)
    if name == "bfloat16" and not fast and device.type == "cpu":
        raise InputError(  # its recurrent layers refuse it, and it would be slower
            "params ask for precision 'bfloat16', which this processor does not multiply; "
            "set precision: auto"
        )
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    return torch.bfloat16 if fast else torch.float32


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed torch and allow only deterministic kernels.

    On a CPU the same inputs then give the same bytes; in float32 most decoders' do not depend on
    the number of threads (docs/reliability.md), if no matrices were multiplied before. On a GPU
    most of it repeats on one machine with one release of torch and CUDA; kernels that have no
    repeatable form warn.

    Args:
        deterministic: where False, a GPU multiplies float32 in TF32, cuDNN takes what it times to
            be fastest, and kernels that do not repeat are allowed. A CPU does as ever.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # MKL's conditional numerical reproducibility: how it adds must not go by the threads it has.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Finds reads of memory that nobody wrote; is dear (docs/performance.md), and we have none.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic  # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    if torch.cuda.is_available() and not deterministic:
        torch.use_deterministic_algorithms(False)
