"""Dropout (Srivastava et al., JMLR 2014) that is fast on a CPU, and the same on any ranks."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distributed.part import Part, draw_rows


class SharedDropout(nn.Dropout):
    """`nn.Dropout` that drops in a part of a batch what it drops there in the whole batch.

    `parts` has, by an input's number of rows, which part of the batch these rows are. It is empty
    if inputs are whole batches. An input of another number of rows gets a mask of its own.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.parts: dict[int, Part] = {}

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or len(input) not in self.parts:
            return super().forward(input)
        part = self.parts[len(input)]
        mask = draw_rows(lambda shape: self._mask(shape, input), input.shape, part)
        padding = len(input) - len(mask)  # rows of padding have no mask in a batch with less of it
        return input * F.pad(mask, (0, 0) * (mask.dim() - 1) + (0, padding))

    def _mask(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """What an input of this shape is multiplied by."""
        return F.dropout(torch.ones(shape, dtype=like.dtype, device=like.device), self.p)


class Dropout(SharedDropout):
    """Dropout that draws one random number for four elements on a CPU.

    There, one draw per element takes 8 % of a training step of Show and Tell. Sixteen bits each
    leave the probability exact to 1/65536; a GPU draws in its own fused kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return input
        if input.device.type != "cpu" or len(input) in self.parts:
            return super().forward(input)
        return input * self._mask(input.shape, input)

    def _mask(self, shape: Sequence[int], like: Tensor) -> Tensor:
        if like.device.type != "cpu":
            return super()._mask(shape, like)
        count = torch.Size(shape).numel()
        draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        sixteen = draws.view(torch.int16)[:count].view(shape)
        kept = sixteen >= min(round(self.p * 65536) - 32768, 32767)
        return kept.to(like.dtype).mul_(1 / (1 - self.p))


def set_parts(module: nn.Module, parts: Iterable[Part]) -> None:
    """Tell all dropouts of a module which parts of the batch its next inputs are: those with as
    many rows as a part has."""
    by_rows = {len(part): part for part in parts}
    for dropout in module.modules():
        if isinstance(dropout, SharedDropout):
            dropout.parts = by_rows
