"""The part of a batch that one rank computes, and its random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of `total`."""

    start: int
    stop: int
    total: int
    # With more ranks than rows, a rank computes a row of another's part, which must not count.
    spare: bool = False

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> "Part":
        """The rank's part of `total` rows."""
        start, stop = total * rank // size, total * (rank + 1) // size
        return cls(start, stop, total) if start < stop else cls(0, 1, total, spare=True)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def times(self, number: int) -> "Part":
        """The part if each row stands for this many, side by side."""
        return Part(self.start * number, self.stop * number, self.total * number, self.spare)


def draw_rows(
    draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], part: Part | None
) -> Tensor:
    """Random numbers of this shape: the ones that these rows get when one process draws for all.

    Every rank draws for the whole batch, so that all generators stay in the same state and no
    result depends on the number of ranks.

    Args:
        draw: returns a tensor of a given shape.
        part: which rows of the batch these are; None: all.
    """
    if part is None:
        return draw(shape)
    return draw((part.total, *shape[1:]))[part.rows]
