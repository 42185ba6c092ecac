"""Run a function of tensors as CUDA graphs.

A decoder's step is about a hundred kernels of a few microseconds each. Launched one by one from
Python they leave the GPU idle; a graph launches them together.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...]
Key = tuple[tuple[torch.Size, torch.dtype], ...]

MAX_GRAPHS = 64  # each needs memory; further shapes run without a graph


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class CudaGraphs:
    """Calls a function, on a GPU as one CUDA graph per shape of its inputs.

    The function must not wait for the device, must run the same kernels for any input values, and
    must get everything that changes between calls as tensors. The first call with a shape runs
    without a graph, as a warm-up; the second one is captured. On a CPU the function runs as it is.

    The next call with the same shape overwrites the outputs.
    """

    def __init__(
        self, function: Callable[..., Any], generators: Sequence[torch.Generator] = ()
    ) -> None:
        """
        Args:
            function: takes tensors on one device, returns a tuple of tensors.
            generators: the generators on that device that it uses, besides torch's default one.
        """
        self._function, self._generators = function, generators
        self._graphs: dict[Key, _Captured] = {}
        self._calls: Counter[Key] = Counter()
        self._pool: Any = None
        self._failed = False

    def __call__(self, *inputs: Tensor) -> Any:
        if inputs[0].device.type != "cuda" or self._failed:
            return self._function(*inputs)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs:
            self._calls[key] += 1
            if self._calls[key] == 1 or len(self._graphs) == MAX_GRAPHS:
                return self._function(*inputs)
            captured = self._capture(inputs)
            if captured is None:
                return self._function(*inputs)
            self._graphs[key] = captured
        captured = self._graphs[key]
        for static, tensor in zip(captured.inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, inputs: Tensors) -> _Captured | None:
        """Capture the function for inputs of these shapes; nothing is computed yet."""
        device = inputs[0].device
        static = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # `torch.cuda.graph` would collect garbage and empty the allocator's cache each time.
        stream = torch.cuda.Stream(device)
        torch.cuda.synchronize(device)
        try:
            with torch.cuda.stream(stream):
                # Graphs of one function never run at the same time, so they share memory.
                graph.capture_begin(self._pool, "thread_local")
                try:
                    outputs = self._function(*static)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self._failed = True
            reason = str(error).splitlines()[0]
            log.warning("running without CUDA graphs, which only costs speed: %s", reason)
            torch.cuda.synchronize(device)
            return None
        self._pool = graph.pool()
        return _Captured(graph, static, outputs)
