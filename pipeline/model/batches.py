"""Training captions as tensors made once, cut into batches of like length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.store.vocabulary import END, PAD, START, Vocabulary


@dataclass(frozen=True)
class EncodedCaptions:
    """N captions, all on the CPU; `start` and `end` are part of each.

    words: (N, L) word ids, <pad> after <end>.
    lengths: (N,), <start> and <end> counted.
    pictures: (N,), each caption's row among the pictures' features.
    """

    words: Tensor
    lengths: Tensor
    pictures: Tensor

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """Captions of about one length, cut to the longest."""

    inputs: Tensor  # (B, T), from <start> to the last word
    targets: Tensor  # (B, T), from the first word to <end>
    pictures: Tensor  # (B,)
    tokens: int  # targets that are not <pad>


def encode(
    references: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary
) -> EncodedCaptions:
    """All captions of all pictures; picture i's captions name row i."""
    rows = [
        (picture, [START, *vocabulary.encode(caption), END])
        for picture, captions in enumerate(references)
        for caption in captions
    ]
    lengths = torch.tensor([len(ids) for _, ids in rows])
    words = torch.full((len(rows), int(lengths.max())), PAD)
    for row, (_, ids) in enumerate(rows):
        words[row, : len(ids)] = torch.tensor(ids)
    return EncodedCaptions(words, lengths, torch.tensor([picture for picture, _ in rows]))


def batches(
    captions: EncodedCaptions, size: int, device: torch.device, shuffle: torch.Generator | None
) -> Iterator[Batch]:
    """Every caption once, in batches of like length, so that hardly a step is spent on <pad>.

    Args:
        shuffle: decides who shares a batch with whom, and the order of the batches; None for
            the same plain order every time.
    """
    order = captions.lengths.float()
    if shuffle is not None:
        order = order + torch.rand(len(captions), generator=shuffle)  # random within a length
    groups = order.argsort(stable=True).split(size)
    turns = (
        range(len(groups)) if shuffle is None else torch.randperm(len(groups), generator=shuffle)
    )
    for turn in turns:
        group = groups[int(turn)]
        longest = int(captions.lengths[group].max())
        words = captions.words[group, :longest].to(device, non_blocking=True)
        yield Batch(
            inputs=words[:, :-1],
            targets=words[:, 1:],
            pictures=captions.pictures[group].to(device, non_blocking=True),
            tokens=int(captions.lengths[group].sum()) - len(group),
        )
