"""The moving average of a decoder's weights: it captions better than where they happen to end."""

import copy

import torch
from torch import Tensor

from pipeline.decoders.decoder import Decoder
from pipeline.training.trainer_state import load_module, save_module


class ModelEma:
    """Polyak & Juditsky 1992, as an exponential moving average; with a decay of 0 none at all.

    It warms up: the decay of step n is (1 + n) / (10 + n) until that is more than `decay`. With a
    fixed one the initial weights would be most of the average for hundreds of steps.
    """

    def __init__(self, decoder: Decoder, decay: float) -> None:
        self._decoder, self._decay, self._steps = decoder, decay, 0
        self._average = copy.deepcopy(decoder).requires_grad_(False) if decay else None
        # What a step moves the average towards the weights. On a GPU a CUDA graph reads it there.
        device = decoder.feature_mean.device
        self._share = torch.ones((), device=device)
        if self._average is not None:  # the copy's recurrent weights lie apart until told
            for module in self._average.modules():
                if isinstance(module, torch.nn.RNNBase):
                    module.flatten_parameters()

    def count_step(self) -> None:
        """Before each step of the optimiser."""
        n = self._steps
        self._share.fill_(1 - min(self._decay, (1 + n) / (10 + n)) if n else 1.0)
        self._steps += 1

    @torch.no_grad()
    def update(self) -> None:
        """After each step of the optimiser; may be part of a CUDA graph."""
        if self._average is None:
            return
        share = self._share if self._share.is_cuda else float(self._share)
        pairs = zip(self._average.parameters(), self._decoder.parameters(), strict=True)
        for average, weights in pairs:
            average.lerp_(weights, share)

    def save(self) -> dict[str, Tensor]:
        """Its own weights, for a checkpoint."""
        if self._average is None:
            return {}
        steps = {"average_steps": torch.tensor(self._steps)}
        return save_module("average", self._average) | steps

    def load(self, tensors: dict[str, Tensor]) -> None:
        if self._average is not None:
            load_module("average", self._average, tensors)
            self._steps = int(tensors["average_steps"])

    @property
    def decoder(self) -> Decoder:
        """The decoder to caption with, in eval mode: the average, where there is one."""
        return (self._decoder if self._average is None else self._average).eval()
