"""The ranks of a run, and what they tell each other; one process alone is a world of one."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.part import Part

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are.

    All of them must call each method alike. With one process nothing is communicated.
    """

    rank: int = 0
    size: int = 1
    # The process group for tensors on a GPU; those on a CPU go through the default group.
    on_gpu: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone logs and writes."""
        return self.rank == 0

    def part(self, total: int) -> Part | None:
        """This rank's part of a batch of `total` rows; None if it computes all of it."""
        return None if self.size == 1 else Part.of(total, self.rank, self.size)

    def shard(self, items: Iterable[Item]) -> Iterator[Item]:
        """This rank's items, dealt out in turn."""
        return islice(items, self.rank, None, self.size)

    def merge_shards(self, results: Sequence[Item]) -> list[Item]:
        """The results of all ranks, in the order of the items that `shard` dealt out."""
        shards = self.gather(list(results))
        count = sum(map(len, shards))
        return [shards[i % self.size][i // self.size] for i in range(count)]

    def gather(self, value: Item) -> list[Item]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Item) -> Item:
        """Rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=self.on_gpu if tensor.is_cuda else None)
        return total

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over ranks in its backward pass."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            # Buffers are constants. The argument's new name is not in all releases that we allow.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module,
                process_group=self.on_gpu,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # All parameters are used. But without this, DDP rebuilds its buckets after the
                # first step, and the buckets decide in which order the ranks' gradients are added:
                # a resumed run would not have the same bytes.
                find_unused_parameters=True,
            )


ALONE = Ranks()
