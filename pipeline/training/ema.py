"""Exponential moving average of a decoder's weights: it captions better than the last step's."""

import copy

import torch

from pipeline.decoders.decoder import Decoder


class ModelEma:
    """Polyak & Juditsky 1992, as an exponential moving average; a decay of 0 means none.

    It warms up: the first step copies the weights, and after n steps the next decay is
    (1 + n) / (10 + n) until that exceeds `decay`. With a fixed decay the initial weights would be
    most of the average for hundreds of steps.
    """

    def __init__(self, decoder: Decoder, decay: float) -> None:
        self._decoder, self._decay = decoder, decay
        self.num_updates = 0
        # The decoder to caption with: the average, or without one the trained decoder itself.
        self.decoder = copy.deepcopy(decoder).requires_grad_(False) if decay else decoder
        # 1 - decay of this step. On a GPU a CUDA graph reads it from the device.
        self._lerp_weight = torch.ones((), device=decoder.feature_mean.device)
        for module in self.decoder.modules():  # the copy's recurrent weights are not yet flat
            if isinstance(module, torch.nn.RNNBase):
                module.flatten_parameters()

    def count_step(self) -> None:
        """Call before each optimiser step."""
        n = self.num_updates
        self._lerp_weight.fill_(1 - min(self._decay, (1 + n) / (10 + n)) if n else 1.0)
        self.num_updates += 1

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimiser step; may be part of a CUDA graph."""
        if self.decoder is self._decoder:
            return
        weight = self._lerp_weight if self._lerp_weight.is_cuda else float(self._lerp_weight)
        pairs = zip(self.decoder.parameters(), self._decoder.parameters(), strict=True)
        for average, weights in pairs:
            average.lerp_(weights, weight)
