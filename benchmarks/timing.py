"""Rates that can be compared on a noisy machine: interleaved, medians, ratios."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """A line of the table: one contender's rate beside its baseline's, in the same run."""

    what: str
    rate: float
    unit: str
    baseline: str
    ratio: float
    bar: str = ""

    def markdown(self) -> str:
        decimals = 0 if self.rate >= 1000 else 1 if self.rate >= 10 else 2
        rate = f"{self.rate:,.{decimals}f}"
        ratio = f"{self.ratio:.2f} x {self.baseline}"
        return f"| {self.what} | {rate} {self.unit} | {ratio} | {self.bar} |"


HEADER = "| what | rate | ratio | bar |\n| --- | --- | --- | --- |"


def interleaved(contenders: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """The median rate of each contender, in units a second.

    All take their turn in every round, so that whatever else the machine does meets all alike; a
    first round only warms up.

    Args:
        contenders: each does its work once and says how many units that was.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, work in contenders.items():
            began = time.perf_counter()
            units = work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                rates[name].append(units / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def machine(device: torch.device) -> str:
    """What the figures were made on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].split(":")[1].strip() if names else name
    flags = torch.cpu.get_capabilities()
    arithmetic = "bfloat16" if flags.get("avx512_bf16") or flags.get("amx_bf16") else "no bfloat16"
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{name}, {torch.get_num_threads()} threads, {arithmetic}{gpu}, torch {torch.__version__}"
    )


def gemm_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product: the arithmetic limit."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for turn in range(6):
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            rates.append(4 * 2 * size**3 / (time.perf_counter() - began))
    return statistics.median(rates)
