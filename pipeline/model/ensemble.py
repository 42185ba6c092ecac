"""Several trained decoders that speak as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model.decoder import Decoder, State


class Ensemble:
    """The mean of the members' next-word probabilities; a decoder to every search.

    Members may be any decoders of one vocabulary. Where the features are grids, members that take
    vectors get the grids' means, which is what pooling is.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        self.members = list(members)
        self._parts: list[tuple[int, int]] = []  # tensors of each member's memory and beams

    def start(self, features: Tensor) -> State:
        states = [one.start(features_for(one, features)) for one in self.members]
        self._parts = [(len(state.memory), len(state.beams)) for state in states]
        return _joined(states)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities (B, V), which are logits as good as any, and the state."""
        memory, beams = list(state.memory), list(state.beams)
        shares, after = [], []
        for member, (of_memory, of_beams) in zip(self.members, self._parts, strict=True):
            own = State(tuple(memory[:of_memory]), tuple(beams[:of_beams]))
            del memory[:of_memory], beams[:of_beams]
            logits, own = member.step(words, own)
            shares.append(logits.float().softmax(dim=-1))
            after.append(own)
        return torch.stack(shares).mean(dim=0).log(), _joined(after)


def features_for(decoder: Decoder, features: Tensor) -> Tensor:
    """Features (P, …) as this decoder takes them: grids, or their means."""
    pooled = len(decoder.config.feature_shape) == 1
    return features.mean(dim=(1, 2)) if pooled and features.dim() == 4 else features


def _joined(states: Sequence[State]) -> State:
    return State(
        tuple(part for state in states for part in state.memory),
        tuple(part for state in states for part in state.beams),
    )
