"""Training captions as tensors made once, cut into batches of like length."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, Vocabulary

PAD_MULTIPLE = 64
LENGTHS = 2  # captions on a GPU are cut to a multiple of it


@dataclass(frozen=True)
class EncodedCaptions:
    """N captions, all on the CPU; `start` and `end` are part of each.

    words: (N, L) word ids, <pad> after <end>.
    lengths: (N,), <start> and <end> counted.
    images: (N,), each caption's row among the images' features.
    """

    words: Tensor
    lengths: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """C captions of each of P images, B = P * C, of about one length, cut to the longest.

    Row i of the captions belongs to `images[i // C]`.
    """

    inputs: Tensor  # (B, T), from <start> to the last word
    targets: Tensor  # (B, T), from the first word to <end>
    images: Tensor  # (P,), on the CPU, or for a GPU on it
    tokens: int  # targets that are no <pad>
    # (tokens,), the positions among the flattened targets that are not <pad>. None on a GPU, which
    # computes every position: to find these it would have to be waited for.
    token_index: Tensor | None = None

    @property
    def extra(self) -> tuple[Tensor, ...]:
        """`token_index`, if known."""
        return () if self.token_index is None else (self.token_index,)


def encode(
    references: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary
) -> EncodedCaptions:
    """All captions of all images; image i's captions name row i."""
    rows = [
        (image, [START, *vocabulary.encode(caption), END])
        for image, captions in enumerate(references)
        for caption in captions
    ]
    lengths = torch.tensor([len(ids) for _, ids in rows])
    words = torch.full((len(rows), int(lengths.max())), PAD)
    for row, (_, ids) in enumerate(rows):
        words[row, : len(ids)] = torch.tensor(ids)
    return EncodedCaptions(words, lengths, torch.tensor([image for image, _ in rows]))


def iter_batches(
    captions: EncodedCaptions,
    size: int,
    device: torch.device,
    shuffle: torch.Generator | None,
    by_image: bool = False,
    few_shapes: bool | None = None,
) -> Iterator[Batch]:
    """Every caption once, in batches of like length, so that few steps are spent on <pad>.

    Args:
        size: captions in a batch.
        shuffle: decides who shares a batch with whom, and the order of the batches; None for
            the same plain order every time.
        by_image: all captions of an image share a batch, so that a grid is read and seen
            through once for all of them; costs some <pad>.
        few_shapes: cut them all on the device, and as few different shapes as CUDA graphs want:
            all have as many rows, the last filled up with captions of <pad>, and lengths are
            rounded up. None: on a GPU.
    """
    if by_image:
        groups = _group_by_image(captions, size, shuffle)
    else:
        every = torch.arange(len(captions))
        groups = [
            (captions.images[group], group.unsqueeze(1))
            for group in _bucket_by_length(every, captions.lengths, size, shuffle)
        ]
    turns = (
        range(len(groups)) if shuffle is None else torch.randperm(len(groups), generator=shuffle)
    )
    groups = [groups[int(turn)] for turn in turns]
    if device.type != "cpu" if few_shapes is None else few_shapes:
        yield from _of_few_shapes(captions, groups, size, device)
        return
    for images, rows in groups:  # (P,), (P, C)
        longest = int(captions.lengths[rows].max())
        yield _on_cpu(captions.words[rows.flatten(), :longest], images)


def _on_cpu(words: Tensor, images: Tensor) -> Batch:
    token_index = (words[:, 1:] != PAD).flatten().nonzero().squeeze(1)
    return Batch(words[:, :-1], words[:, 1:], images, len(token_index), token_index)


def _of_few_shapes(
    captions: EncodedCaptions,
    groups: Sequence[tuple[Tensor, Tensor]],
    size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches cut on the device, which is never waited for."""
    words = F.pad(captions.words, (0, LENGTHS, 0, 1), value=PAD).to(device)  # the last row is empty
    last = len(captions)
    full = [
        (F.pad(images, (0, lack)), F.pad(rows, (0, 0, 0, lack), value=last).flatten())
        for images, rows in groups
        for lack in [max(1, size // rows.shape[1]) - len(rows)]
    ]
    sizes = [len(part) for both in full for part in both]
    parts = torch.cat([part for both in full for part in both]).to(device).split(sizes)
    for number, (_, rows) in enumerate(groups):
        lengths = captions.lengths[rows]
        T = -(-(int(lengths.max()) - 1) // LENGTHS) * LENGTHS
        chosen = words.index_select(0, parts[2 * number + 1])[:, : T + 1]
        tokens = int(lengths.sum()) - lengths.numel()
        yield Batch(chosen[:, :-1], chosen[:, 1:], parts[2 * number], tokens)


def pad_to_multiple(places: Tensor) -> Tensor:
    """Places (n,), and place 0 until they are a multiple of PAD_MULTIPLE.

    For every number of rows that it has not seen, oneDNN compiles its kernels anew, which on some
    processors took a fifth of a step. Rounded up, batches have few different numbers of words.
    """
    return F.pad(places, (0, -len(places) % PAD_MULTIPLE))


def sample_captions(
    captions: EncodedCaptions, images: Tensor, rng: torch.Generator, device: torch.device
) -> Batch:
    """A caption of each of these images (P,), drawn from its own."""
    counts = torch.bincount(captions.images)
    begins = counts.cumsum(0) - counts
    drawn = (torch.rand(len(images), generator=rng) * counts[images]).long()
    rows = begins[images] + drawn
    words = captions.words[rows, : int(captions.lengths[rows].max())]
    if device.type == "cpu":
        return _on_cpu(words, images)
    tokens = int((words[:, 1:] != PAD).sum())
    words = F.pad(words, (0, (1 - words.shape[1]) % LENGTHS), value=PAD).to(device)
    return Batch(words[:, :-1], words[:, 1:], images, tokens)


def count_batches(captions: EncodedCaptions, size: int, by_image: bool) -> int:
    """How many batches they are."""
    if not by_image:
        return math.ceil(len(captions) / size)
    _, counts = captions.images.unique_consecutive(return_counts=True)
    alike = zip(*(part.tolist() for part in counts.unique(return_counts=True)), strict=True)
    return sum(math.ceil(images / max(1, size // count)) for count, images in alike)


def _bucket_by_length(
    items: Tensor, lengths: Tensor, size: int, shuffle: torch.Generator | None
) -> tuple[Tensor, ...]:
    """`items` in groups of like length; who of one length meets whom is chance."""
    order = lengths.float()
    if shuffle is not None:
        order = order + torch.rand(len(items), generator=shuffle)
    return items[order.argsort(stable=True)].split(size)


def _group_by_image(
    captions: EncodedCaptions, size: int, shuffle: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    """Images (P,) with as many captions each, and the rows of these captions (P, C)."""
    images, counts = captions.images.unique_consecutive(return_counts=True)
    begins = counts.cumsum(0) - counts
    longest = torch.stack([part.max() for part in captions.lengths.split(counts.tolist())])
    groups = []
    for count in counts.unique().tolist():
        alike = (counts == count).nonzero().squeeze(1)
        for group in _bucket_by_length(alike, longest[alike], max(1, size // count), shuffle):
            rows = begins[group].unsqueeze(1) + torch.arange(count)  # (P, C)
            groups.append((images[group], rows))
    return groups
