"""The moving average of a decoder's weights: it captions better than where they happen to end."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.model.decoder import Decoder
from pipeline.model.state import load_module, save_module

Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """Polyak & Juditsky 1992, as an exponential moving average; with a decay of 0 none at all.

    It warms up: the decay of step n is (1 + n) / (10 + n) until that is more than `decay`. With a
    fixed one the initial weights would be most of the average for hundreds of steps.
    """

    def __init__(self, decoder: Decoder, decay: float) -> None:
        self._decoder, self._decay = decoder, decay
        self._average = AveragedModel(decoder, multi_avg_fn=self._move) if decay else None
        if self._average is not None:  # the copy's recurrent weights lie apart until told
            for module in self._average.modules():
                if isinstance(module, torch.nn.RNNBase):
                    module.flatten_parameters()

    def update(self) -> None:
        """After each step of the optimiser."""
        if self._average is not None:
            self._average.update_parameters(self._decoder)

    def _move(self, averages: Tensors, weights: Tensors, _: Tensor | int) -> None:
        assert self._average is not None
        steps = int(self._average.n_averaged)  # lies on the CPU: no wait for a GPU
        decay = min(self._decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)(averages, weights, steps)

    def save(self) -> dict[str, Tensor]:
        """Its own weights, for a checkpoint."""
        return {} if self._average is None else save_module("average", self._average)

    def load(self, tensors: dict[str, Tensor]) -> None:
        if self._average is not None:
            load_module("average", self._average, tensors)

    @property
    def decoder(self) -> Decoder:
        """The decoder to caption with, in eval mode: the average, where there is one."""
        decoder = self._decoder if self._average is None else self._average.module
        assert isinstance(decoder, Decoder)
        return decoder.eval()
