"""CIDEr-D and BLEU-4 as rewards: on token ids, a whole batch at once, on the batch's device.
`pipeline.metrics.scores` computes the scores that are reported.

Each n-gram is encoded as one integer, and its count in a reference is looked up in a sorted table.
A batch is scored by a few tensor operations, without waiting for the device.

Shapes: P images, S samples per image, B = P * S captions, T tokens per caption, T' positions at
which an n-gram can start, N images with references, R references per image at most, G distinct
n-grams of one order in the references.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.captions.vocabulary import PAD
from pipeline.metrics.registry import ORDERS

SIGMA = 6.0
NO_NGRAM = -1  # at positions where no n-gram fits


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one order in all references. Row i * R + r is reference r of image i."""

    ngrams: Tensor  # (G,) int64, sorted
    idf: Tensor  # (G,) float64
    keys: Tensor  # row * G + index of the n-gram, for each n-gram of each reference; int64, sorted
    counts: Tensor  # of each key, float64
    norms: Tensor  # (N * R,) float64: the norm of each reference's tf-idf vector

    def lookup(self, ngrams: Tensor, rows: Tensor, default_idf: float) -> tuple[Tensor, Tensor]:
        """Return the counts (B, R, T') of n-grams (B, T') in the references of these rows (B, R),
        and the idf (B, T') of each: `default_idf` if no reference has it."""
        index, is_known = _lookup(self.ngrams, ngrams)
        idf = torch.where(is_known, self.idf[index], default_idf)
        keys = rows.unsqueeze(2) * len(self.ngrams) + index.unsqueeze(1)
        index, occurs = _lookup(self.keys, keys)
        return (self.counts[index] * occurs).masked_fill_(~is_known.unsqueeze(1), 0), idf


class References:
    """The n-gram counts of N images' references."""

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        vocabulary_size: int,
        device: torch.device | None = None,
    ) -> None:
        """Count all n-grams.

        Args:
            references: token ids of each image's references, at least one per image. With <end>
                at their end, a caption that stops after "in the" misses n-grams.
            vocabulary_size: larger than every token id.
        """
        self.num_images, self.base = len(references), vocabulary_size
        self.max_references = max(len(refs) for refs in references)  # R
        flat = [ref for refs in references for ref in refs]
        rows = np.concatenate(
            [i * self.max_references + np.arange(len(refs)) for i, refs in enumerate(references)]
        )
        lengths = np.array([len(ref) for ref in flat])
        token_ids = np.full((len(flat), max(1, lengths.max())), PAD)
        for row, ref in zip(token_ids, flat, strict=True):
            row[: len(ref)] = ref
        table = torch.from_numpy(token_ids), torch.from_numpy(lengths)
        self.ngram_counts = [
            self._count(encode_ngrams(*table, n, self.base).numpy(), rows, device)
            for n in range(1, ORDERS + 1)
        ]
        by_row = np.zeros(self.num_images * self.max_references, dtype=np.int64)
        by_row[rows] = lengths
        self.lengths = torch.from_numpy(by_row).view(self.num_images, -1).to(device)  # (N, R)
        num_references = np.bincount(rows // self.max_references, minlength=self.num_images)
        self.num_references = torch.from_numpy(num_references).to(device)  # (N,)
        self.slots = torch.arange(self.max_references, device=device)  # (R,)

    @property
    def log_images(self) -> float:
        return math.log(self.num_images)

    def rows(self, images: Tensor) -> Tensor:
        """Return the rows of the images' references: (B,) -> (B, R)."""
        return images.unsqueeze(1) * self.max_references + self.slots

    def _count(
        self, ngrams: np.ndarray, rows: np.ndarray, device: torch.device | None
    ) -> NgramCounts:
        fits = ngrams != NO_NGRAM  # (references, T')
        distinct, index = np.unique(ngrams[fits], return_inverse=True)
        if not len(distinct):  # every reference is too short
            distinct = np.array([NO_NGRAM - 1])
        row_of = np.broadcast_to(rows[:, None], ngrams.shape)[fits]
        keys, key_counts = np.unique(row_of * len(distinct) + index, return_counts=True)
        row_of, index = np.divmod(keys, len(distinct))
        image_of = row_of // self.max_references
        in_images = np.unique(image_of * len(distinct) + index) % len(distinct)
        document_frequency = np.bincount(in_images, minlength=len(distinct)).clip(1)
        idf = self.log_images - np.log(document_frequency.astype(np.float64))
        squares = np.square(key_counts * idf[index])
        norms = np.bincount(row_of, squares, minlength=self.num_images * self.max_references)
        counts = key_counts.astype(np.float64)
        if not len(keys):
            keys, counts = np.array([-1]), np.zeros(1)
        parts = (distinct, idf, keys, counts, np.sqrt(norms))
        return NgramCounts(*(torch.from_numpy(part).to(device) for part in parts))


class CiderReward:
    """CIDEr-D, 0 to 10, with the document frequencies of the references.

    Vedantam et al., "CIDEr", CVPR 2015; the -D variant as coco-caption computes it, without
    stemming. A reward is the score of the reports / 100.
    """

    def __init__(self, references: References) -> None:
        self._references = references

    def __call__(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return rewards (B,), float64.

        Args:
            images: (P,), indices of images that have references.
            captions: (B, T) token ids, with <pad> after each caption.
        """
        images, lengths, refs = *_expand(images, captions), self._references
        rows = refs.rows(images)  # (B, R)
        total = torch.zeros(rows.shape, dtype=torch.float64, device=captions.device)
        for n, ngram_counts in enumerate(refs.ngram_counts, start=1):
            ngrams = encode_ngrams(captions, lengths, n, refs.base)  # (B, T')
            counts = _own_counts(ngrams)
            ref_counts, idf = ngram_counts.lookup(ngrams, rows, default_idf=refs.log_images)
            idf = idf.masked_fill(ngrams == NO_NGRAM, 0)
            # Counts are clipped: repeating an n-gram earns nothing. A repeated n-gram takes several
            # positions, so each position gets its fraction.
            clipped = torch.minimum(ref_counts, counts.unsqueeze(1))  # (B, R, T')
            product = clipped * ref_counts / counts.unsqueeze(1)
            dot = (product * idf.square().unsqueeze(1)).sum(-1)  # (B, R)
            norm = (counts * idf.square()).sum(-1, keepdim=True).sqrt() * ngram_counts.norms[rows]
            total += torch.where(dot > 0, dot / norm.clamp_min(1e-300), 0)
        gap = (refs.lengths[images] - lengths.unsqueeze(1)).double()
        total = total * torch.exp(-gap.square() / (2 * SIGMA**2))
        return 10 * total.sum(dim=1) / (ORDERS * refs.num_references[images])


class BleuReward:
    """Sentence BLEU-4, 0 to 1.

    A single caption often matches no 4-gram. So one is added to the matches and to the n-grams of
    every order above 1 (Lin and Och, "ORANGE", COLING 2004).
    """

    def __init__(self, references: References) -> None:
        self._references = references

    def __call__(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return rewards (B,), float64. The arguments are those of `CiderReward`."""
        lengths, closest, *matches = self.counts(images, captions)
        logs = (matches[0] / lengths.clamp_min(1)).log()
        for n in range(2, ORDERS + 1):  # an order that does not fit lowers the reward
            logs = logs + ((matches[n - 1] + 1) / ((lengths + 1 - n).clamp_min(1) + 1)).log()
        log_brevity = (1 - closest / lengths.clamp_min(1)).clamp_max(0)
        return torch.where(matches[0] > 0, torch.exp(logs / ORDERS + log_brevity), 0)

    def counts(self, images: Tensor, captions: Tensor) -> list[Tensor]:
        """Return the counts of each caption, float64 (B,) each: its length, the length of the
        closest reference (of two, the shorter), and for n = 1 to 4 its clipped n-gram matches."""
        images, lengths, refs = *_expand(images, captions), self._references
        rows = refs.rows(images)  # (B, R)
        matches = []
        for n, ngram_counts in enumerate(refs.ngram_counts, start=1):
            ngrams = encode_ngrams(captions, lengths, n, refs.base)  # (B, T')
            counts = _own_counts(ngrams)
            max_counts = ngram_counts.lookup(ngrams, rows, default_idf=0)[0].amax(dim=1)  # (B, T')
            matches.append((torch.minimum(max_counts, counts) / counts).sum(dim=1))  # (B,)
        ref_lengths = refs.lengths[images]  # (B, R)
        gap = ref_lengths - lengths.unsqueeze(1)
        rank = 2 * gap.abs() + (gap > 0)
        missing = refs.slots >= refs.num_references[images].unsqueeze(1)
        rank = rank.masked_fill(missing, torch.iinfo(rank.dtype).max)
        closest = ref_lengths.gather(1, rank.argmin(dim=1, keepdim=True)).squeeze(1)
        return [lengths.double(), closest.double(), *matches]


def encode_ngrams(token_ids: Tensor, lengths: Tensor, n: int, base: int) -> Tensor:
    """Encode the n-gram at each position of (B, T) as one integer: (B, max(1, T + 1 - n)).

    With up to 55,108 tokens every 4-gram has an integer of its own. With more, int64 wraps around,
    and two n-grams hardly ever share one.

    Args:
        lengths: of each row, (B,). Positions where no n-gram fits hold NO_NGRAM.
    """
    T = token_ids.shape[1]
    positions = max(1, T + 1 - n)
    token_ids = torch.nn.functional.pad(token_ids, (0, max(0, n - T)))
    code = token_ids[:, :positions]
    for shift in range(1, n):
        code = code * base + token_ids[:, shift : shift + positions]
    fits = torch.arange(positions, device=token_ids.device) + n <= lengths.unsqueeze(1)
    return code.masked_fill(~fits, NO_NGRAM)


def _own_counts(ngrams: Tensor) -> Tensor:
    """Count each n-gram of (B, T') in its own row, float64."""
    return (ngrams.unsqueeze(2) == ngrams.unsqueeze(1)).sum(-1).double()


def _expand(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image and the length of each caption, (B,) each."""
    return images.repeat_interleave(len(captions) // len(images)), (captions != PAD).sum(dim=1)


def _lookup(table: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of each value in a sorted table, and whether it is there."""
    index = torch.searchsorted(table, values).clamp_max(len(table) - 1)
    return index, table[index] == values
