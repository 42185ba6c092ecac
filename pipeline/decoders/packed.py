"""Captions of different lengths, step by step and without padding, for training on a CPU.

A CPU computes every row that it is given, and batches of grids have much padding, since the
captions of an image share a batch.

Shapes as in `pipeline.decoders.decoder`; n is the number of tokens of all captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD


@dataclass(frozen=True)
class Step:
    """The captions that have a token at a step."""

    kept: Tensor | None  # (B_t,), their indices among those of the step before; None: the same
    per_image: Sequence[int]  # how many of them each image has

    def keep(self, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Select the rows of these captions from the state after the step before."""
        if self.kept is None:
            return hidden
        return tuple(part.index_select(0, self.kept) for part in hidden)


class PackedCaptions:
    """The tokens of captions step by step, without what follows their end.

    Unlike in torch's `PackedSequence`, captions stay in order, so that those of an image are
    neighbours at every step.
    """

    def __init__(self, token_ids: Tensor, num_images: int) -> None:
        """Pack by `token_ids` (B, T). Nothing is predicted after <end> and <pad>."""
        self._shape = token_ids.shape
        lengths = ((token_ids != PAD) & (token_ids != END)).sum(dim=1)
        has_token = torch.arange(int(lengths.max())).unsqueeze(1) < lengths  # (steps, B)
        self._index = has_token.flatten().nonzero().squeeze(1)  # (n,), into the flattened (T, B)
        self.steps: list[Step] = []
        before = torch.ones_like(has_token[0])
        for now in has_token:
            kept = None if torch.equal(now, before) else now[before].nonzero().squeeze(1)
            self.steps.append(Step(kept, now.view(num_images, -1).sum(dim=1).tolist()))
            before = now

    @property
    def sizes(self) -> list[int]:
        """The number of captions at each step."""
        return [sum(step.per_image) for step in self.steps]

    def pack(self, rows: Tensor) -> Tensor:
        """(B, T, ·) -> (n, ·), step by step."""
        return rows.transpose(0, 1).flatten(0, 1)[self._index]

    def pack_images(self, rows: Tensor) -> Tensor:
        """A row of each image (P, ·) -> of each token (n, ·)."""
        B = self._shape[0]
        return rows[self._index % B // (B // len(rows))]

    def pad(self, packed: Tensor) -> Tensor:
        """(n, ·) -> (B, T, ·), zeros where a caption is over."""
        B, T = self._shape
        padded = packed.new_zeros(T * B, packed.shape[-1]).index_copy(0, self._index, packed)
        return padded.view(T, B, -1).transpose(0, 1)
