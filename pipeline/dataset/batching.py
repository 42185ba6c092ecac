"""Training captions as tensors, and batches of captions of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.captions.vocabulary import END, PAD, START, Vocabulary
from pipeline.distributed.part import Part

PAD_MULTIPLE = 64
LENGTH_MULTIPLE = 2  # on a GPU


@dataclass(frozen=True)
class EncodedCaptions:
    """All captions of a split on the CPU, each from <start> to <end>."""

    token_ids: Tensor  # (num_captions, T), <pad> after <end>
    lengths: Tensor  # (num_captions,), <start> and <end> counted
    images: Tensor  # (num_captions,), each caption's index into the split's images

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """C captions of each of P images, B = P * C; caption i belongs to `images[i // C]`."""

    inputs: Tensor  # (B, T), from <start>
    targets: Tensor  # (B, T), one token ahead: to <end>, then <pad>
    images: Tensor  # (P,), indices into the split's images
    tokens: int  # the number of targets that are not <pad>
    # (tokens,), the positions among the flattened targets that are not <pad>. None on a GPU, which
    # computes every position: finding these would synchronise with it.
    token_index: Tensor | None = None

    @property
    def extra(self) -> tuple[Tensor, ...]:
        """`token_index`, if known."""
        return () if self.token_index is None else (self.token_index,)


@dataclass(frozen=True)
class BatchPart:
    """The images of a batch that one rank computes, with their captions."""

    batch: Batch  # of these images alone, with the T of the whole batch
    images: Part
    captions: Part
    outputs: Part  # of the rows of the output layer
    tokens: int  # of the whole batch

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.images, self.captions, self.outputs


def take_part(batch: Batch, images: Part) -> BatchPart:
    """Take a part of the images; a spare one has no targets."""
    captions = images.times(len(batch.inputs) // len(batch.images))
    inputs, targets = batch.inputs[captions.rows], batch.targets[captions.rows]
    if images.spare:
        targets = torch.full_like(targets, PAD)
    if batch.token_index is None:  # every position is computed
        own = Batch(inputs, targets, batch.images[images.rows], batch.tokens)
        outputs = captions.times(targets.shape[1])
        return BatchPart(own, images, captions, outputs, batch.tokens)
    token_index = (targets != PAD).flatten().nonzero().squeeze(1)
    own = Batch(inputs, targets, batch.images[images.rows], len(token_index), token_index)
    before = int((batch.targets[: captions.start] != PAD).sum())
    outputs = padded_part(before, len(token_index), batch.tokens)
    return BatchPart(own, images, captions, outputs, batch.tokens)


def padded_part(start: int, count: int, total: int) -> Part:
    """Which part `count` rows are of `total`, if both are padded to a multiple of PAD_MULTIPLE."""
    padded = count + -count % PAD_MULTIPLE
    return Part(start, start + padded, total + -total % PAD_MULTIPLE)


def encode(
    references: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary
) -> EncodedCaptions:
    """Encode all captions of all images; `references[i]` belong to image i."""
    lengths = torch.tensor([len(caption) + 2 for captions in references for caption in captions])
    token_ids = np.full((len(lengths), int(lengths.max())), PAD)
    captions = (caption for captions in references for caption in captions)
    for row, length, caption in zip(token_ids, lengths.tolist(), captions, strict=True):
        row[:length] = [START, *vocabulary.encode(caption), END]
    counts = torch.tensor([len(captions) for captions in references])
    return EncodedCaptions(
        token_ids=torch.from_numpy(token_ids),
        lengths=lengths,
        images=torch.arange(len(references)).repeat_interleave(counts),
    )


def iter_batches(
    captions: EncodedCaptions,
    size: int,
    device: torch.device,
    shuffle: torch.Generator | None,
    by_image: bool = False,
    static_shapes: bool | None = None,
) -> Iterator[Batch]:
    """Iterate over every caption once, in batches of similar length, with little <pad>.

    Args:
        size: captions per batch.
        shuffle: shuffles captions of similar length, and the batches; None for a fixed order.
        by_image: all captions of an image share a batch, so that its grid is read and projected
            once for all of them; costs some <pad>.
        static_shapes: build the batches on the device, in the few shapes that CUDA graphs want: all
            have the same number of rows, the last one padded with empty captions, and lengths are
            rounded up. None: on a GPU.
    """
    groups = _group(captions, size, by_image, shuffle)
    if shuffle is not None:
        order = torch.randperm(len(groups), generator=shuffle)
        groups = [groups[i] for i in order.tolist()]
    if device.type != "cpu" if static_shapes is None else static_shapes:
        yield from _static_shape_batches(captions, groups, size, device)
        return
    for images, rows in groups:  # (P,), (P, C)
        max_length = int(captions.lengths[rows].max())
        yield _on_cpu(captions.token_ids[rows.flatten(), :max_length], images)


def _on_cpu(token_ids: Tensor, images: Tensor) -> Batch:
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    token_index = (targets != PAD).flatten().nonzero().squeeze(1)
    return Batch(inputs, targets, images, len(token_index), token_index)


def _static_shape_batches(
    captions: EncodedCaptions,
    groups: Sequence[tuple[Tensor, Tensor]],
    size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches built on the device without ever waiting for it."""
    # The last row is an empty caption.
    token_ids = F.pad(captions.token_ids, (0, LENGTH_MULTIPLE, 0, 1), value=PAD).to(device)
    empty = len(captions)
    padded: list[Tensor] = []  # images and rows of each batch in turn, padded to its size
    for images, rows in groups:
        num_pad = max(1, size // rows.shape[1]) - len(rows)
        padded += [
            F.pad(images, (0, num_pad)),
            F.pad(rows, (0, 0, 0, num_pad), value=empty).flatten(),
        ]
    on_device = torch.cat(padded).to(device).split([len(part) for part in padded])  # one copy
    for number, (_, rows) in enumerate(groups):
        lengths = captions.lengths[rows]
        T = -(-(int(lengths.max()) - 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        ids = token_ids.index_select(0, on_device[2 * number + 1])[:, : T + 1]
        tokens = int(lengths.sum()) - lengths.numel()
        yield Batch(ids[:, :-1], ids[:, 1:], on_device[2 * number], tokens)


def pad_to_multiple(indices: Tensor) -> Tensor:
    """Pad indices (n,) with 0 to a multiple of PAD_MULTIPLE.

    oneDNN compiles its kernels again for every new number of rows, which on some processors took a
    fifth of a step.
    """
    return F.pad(indices, (0, -len(indices) % PAD_MULTIPLE))


def sample_captions(
    captions: EncodedCaptions, images: Tensor, rng: torch.Generator, device: torch.device
) -> Batch:
    """A batch with one random caption of each of these images (P,)."""
    counts = torch.bincount(captions.images)
    offsets = counts.cumsum(0) - counts
    choice = (torch.rand(len(images), generator=rng) * counts[images]).long()
    rows = offsets[images] + choice
    token_ids = captions.token_ids[rows, : int(captions.lengths[rows].max())]
    if device.type == "cpu":
        return _on_cpu(token_ids, images)
    tokens = int((token_ids[:, 1:] != PAD).sum())
    num_pad = (1 - token_ids.shape[1]) % LENGTH_MULTIPLE
    token_ids = F.pad(token_ids, (0, num_pad), value=PAD).to(device)
    return Batch(token_ids[:, :-1], token_ids[:, 1:], images, tokens)


def count_batches(captions: EncodedCaptions, size: int, by_image: bool) -> int:
    """The number of batches of `iter_batches`."""
    return len(_group(captions, size, by_image, shuffle=None))


def _bucket_by_length(
    items: Tensor, lengths: Tensor, size: int, shuffle: torch.Generator | None
) -> tuple[Tensor, ...]:
    """`items` in groups of similar length; `shuffle` breaks ties of length."""
    order = lengths.float()
    if shuffle is not None:
        order = order + torch.rand(len(items), generator=shuffle)
    return items[order.argsort(stable=True)].split(size)


def _group(
    captions: EncodedCaptions, size: int, by_image: bool, shuffle: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    """Each batch's images (P,), and the rows (P, C) of their captions, as many for each image."""
    if not by_image:
        all_rows = torch.arange(len(captions))
        buckets = _bucket_by_length(all_rows, captions.lengths, size, shuffle)
        return [(captions.images[rows], rows.unsqueeze(1)) for rows in buckets]
    images, counts = captions.images.unique_consecutive(return_counts=True)
    offsets = counts.cumsum(0) - counts
    longest = torch.stack([part.max() for part in captions.lengths.split(counts.tolist())])
    groups = []
    for count in counts.unique().tolist():
        same = (counts == count).nonzero().squeeze(1)
        for group in _bucket_by_length(same, longest[same], max(1, size // count), shuffle):
            rows = offsets[group].unsqueeze(1) + torch.arange(count)  # (P, C)
            groups.append((images[group], rows))
    return groups
