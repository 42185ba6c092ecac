"""Captions of different lengths, step by step and without padding, for training on a CPU.

A CPU computes every row that it is given. Half of a batch of grids may be padding, since the
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

    captions: Tensor  # (B_t,), indices into the batch
    kept: Tensor | None  # (B_t,), their indices among those of the step before; None: the same
    per_image: Sequence[int]  # how many of them each image has

    def keep(self, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state's rows of these captions, of those of the step before."""
        if self.kept is None:
            return hidden
        return tuple(part.index_select(0, self.kept) for part in hidden)


class PackedCaptions:
    """The tokens of captions step by step, without what follows their end.

    Other than in torch's `PackedSequence`, captions stay in order, so that those of an image are
    neighbours at every step.
    """

    def __init__(self, token_ids: Tensor, num_images: int) -> None:
        """Pack by `token_ids` (B, T). Nothing is predicted after <end> and <pad>."""
        self._shape = token_ids.shape
        lengths = ((token_ids != PAD) & (token_ids != END)).sum(dim=1)
        alive = torch.arange(token_ids.shape[1]).unsqueeze(1) < lengths  # (T, B)
        self._index = alive.flatten().nonzero().squeeze(1)  # (n,), into the flattened (T, B)
        captions = [row.nonzero().squeeze(1) for row in alive]
        per_image = alive.view(len(alive), num_images, -1).sum(dim=2).tolist()
        self.steps = [Step(captions[0], None, per_image[0])]
        for t in range(1, len(captions)):
            if len(captions[t]) == 0:
                break
            same = len(captions[t]) == len(captions[t - 1])
            kept = None if same else alive[t][captions[t - 1]].nonzero().squeeze(1)
            self.steps.append(Step(captions[t], kept, per_image[t]))

    @property
    def sizes(self) -> list[int]:
        """The number of captions at each step."""
        return [len(step.captions) for step in self.steps]

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
