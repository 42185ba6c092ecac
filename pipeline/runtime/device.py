"""Choose the device and its fast dtypes, and make runs repeatable."""

import os
from typing import Literal, get_args

import torch

from pipeline.runtime.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: str) -> torch.device:
    """Return the device of this name; `auto` uses a GPU if there is one.

    Raises:
        InputError: there is no device of that name, here or at all.
    """
    if name not in get_args(DeviceName):
        raise InputError(f"the device is '{name}', but must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the device is cuda, but no CUDA device is visible; "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or choose auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fast_dtypes(device: torch.device) -> list[torch.dtype]:
    """Return the dtypes that the device multiplies faster than float32, the most precise first.

    The hardware's capabilities decide, not a timing: two runs on one machine must agree.
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
    """Return the dtype for training; `auto` uses bfloat16 if the hardware supports it.

    Unlike float16, bfloat16 has float32's range, which gradients need.

    Raises:
        InputError: the name is bfloat16, and the CPU does not support it.
    """
    fast = torch.bfloat16 in fast_dtypes(device)
    if name == "bfloat16" and not fast and device.type == "cpu":
        raise InputError(  # recurrent layers fail there, and emulation is slower
            "params set precision: bfloat16, which this processor does not support; "
            "set precision: auto"
        )
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    return torch.bfloat16 if fast else torch.float32


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed torch and allow only deterministic kernels.

    On a CPU the same inputs then give the same bytes. In float32, most decoders' results do not
    depend on the number of threads either (docs/reliability.md), if no matrices were multiplied
    before. On a GPU most results repeat on one machine with one release of torch and CUDA; kernels
    without a deterministic form warn.

    Args:
        deterministic: if False, a GPU multiplies float32 in TF32, cuDNN chooses the fastest kernels
            by timing, and nondeterministic kernels are allowed. A CPU stays deterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    use_reproducible_products()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # This finds reads of uninitialised memory, which we do not have, and is slow
    # (docs/performance.md).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    if torch.cuda.is_available() and not deterministic:
        torch.use_deterministic_algorithms(False)


def use_reproducible_products() -> None:
    """On a CPU, products of float32 matrices must not depend on the number of threads.

    This is MKL's conditional numerical reproducibility; it has no effect after the first product.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
