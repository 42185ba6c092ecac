"""A function of tensors as CUDA graphs: the GPU is told once what to do, not kernel by kernel.

A decoder's step is some hundred kernels of a few microseconds each. Launched one by one from
Python they leave the GPU waiting; a graph launches them together.
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

MAX_GRAPHS = 64  # each holds its launches in memory; shapes past that run as they are


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class CudaGraphs:
    """Calls a function, on a GPU as one graph for each shape of its inputs.

    The function must not wait for the device, must do the same whatever the values of its inputs,
    and must be told everything that changes between calls by tensors. A shape runs as it is when it
    comes first, which also warms up, and is captured when it comes again. On a CPU the function is
    called.

    The outputs of a call are overwritten by the next one of the same shape.
    """

    def __init__(
        self, function: Callable[..., Any], generators: Sequence[torch.Generator] = ()
    ) -> None:
        """
        Args:
            function: of tensors on one device, to a tuple of tensors.
            generators: what it draws from besides torch's own generator, on that device.
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
        """The function's graph for inputs like these; nothing is computed yet."""
        device = inputs[0].device
        static = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # Not by `torch.cuda.graph`, which collects garbage and empties the allocator each time.
        stream = torch.cuda.Stream(device)
        torch.cuda.synchronize(device)
        try:
            with torch.cuda.stream(stream):
                # Graphs of one function never run at once, so they share their memory.
                graph.capture_begin(self._pool, "thread_local")
                try:
                    outputs = self._function(*static)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self._failed = True
            reason = str(error).splitlines()[0]
            log.warning("no CUDA graph, which costs speed and nothing else: %s", reason)
            torch.cuda.synchronize(device)
            return None
        self._pool = graph.pool()
        return _Captured(graph, static, outputs)
