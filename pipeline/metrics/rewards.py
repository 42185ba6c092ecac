"""CIDEr-D and BLEU-4 as rewards: of token ids, for a whole batch at once, on the device that drew
it. `pipeline.metrics.scores` scores for people.

An n-gram is one number, and how often a reference has it is looked up in a sorted table. So a batch
is scored by a handful of tensor operations, and nothing waits for the device.

Shapes: P images, S samples of each, B = P * S captions, T tokens of a caption, N images with
references, R references at most of an image, G n-grams that references have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.captions.vocabulary import PAD

SIGMA = 6.0
ORDERS = 4
NO_NGRAM = -1  # where none fits


@dataclass(frozen=True)
class Counts:
    """Which n-grams of one order stand where. Row i * R + r is reference r of image i."""

    known: Tensor  # (G,) int64, sorted
    idf: Tensor  # (G,) float64
    pairs: Tensor  # row * G + n-gram, of each n-gram in each reference; int64, sorted
    times: Tensor  # how often it stands there, float64
    norms: Tensor  # (N * R,) float64, of each reference's tf-idf

    def of(self, ngrams: Tensor, rows: Tensor, unseen: float) -> tuple[Tensor, Tensor]:
        """How often n-grams (B, T') stand in the references of these rows (B, R), (B, R, T'), and
        the idf (B, T') of each: `unseen` where no reference has it."""
        place, is_known = _looked_up(self.known, ngrams)
        idf = torch.where(is_known, self.idf[place], unseen)
        pairs = rows.unsqueeze(2) * len(self.known) + place.unsqueeze(1)
        place, stands = _looked_up(self.pairs, pairs)
        return (self.times[place] * stands).masked_fill_(~is_known.unsqueeze(1), 0), idf


class References:
    """Token ids of N images' references, counted."""

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        vocabulary_size: int,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            references: token ids of the captions of each image, one at least. Where they end in
                <end>, how a caption ends counts: one that breaks off after "in the" misses n-grams.
            vocabulary_size: larger than every token id.
        """
        self.images, self.base = len(references), vocabulary_size
        self.most = max(len(image) for image in references)  # R
        every = [one for image in references for one in image]
        rows = np.concatenate(
            [i * self.most + np.arange(len(image)) for i, image in enumerate(references)]
        )
        lengths = np.array([len(one) for one in every])
        tokens = np.full((len(every), max(1, lengths.max())), PAD)
        for place, one in enumerate(every):
            tokens[place, : len(one)] = one
        table = torch.from_numpy(tokens), torch.from_numpy(lengths)
        self.counts = [
            self._counted(ngrams(*table, n, self.base).numpy(), rows, device)
            for n in range(1, ORDERS + 1)
        ]
        by_row = np.zeros(self.images * self.most, dtype=np.int64)
        by_row[rows] = lengths
        self.lengths = torch.from_numpy(by_row).view(self.images, -1).to(device)  # (N, R)
        filled = np.bincount(rows // self.most, minlength=self.images)
        self.filled = torch.from_numpy(filled).to(device)  # (N,): how many an image has

    @property
    def log_images(self) -> float:
        return math.log(self.images)

    def rows(self, images: Tensor) -> Tensor:
        """(B,) -> (B, R)."""
        return images.unsqueeze(1) * self.most + torch.arange(self.most, device=images.device)

    def _counted(self, grams: np.ndarray, rows: np.ndarray, device: torch.device | None) -> Counts:
        fits = grams != NO_NGRAM  # (references, places)
        known, number = np.unique(grams[fits], return_inverse=True)
        if not len(known):  # no reference has so many tokens
            known = np.array([NO_NGRAM - 1])
        row_of = np.broadcast_to(rows[:, None], grams.shape)[fits]
        pairs, times = np.unique(row_of * len(known) + number, return_counts=True)
        row_of, number = np.divmod(pairs, len(known))
        in_images = np.unique(row_of // self.most * len(known) + number) % len(known)
        frequency = np.bincount(in_images, minlength=len(known)).clip(1)
        idf = self.log_images - np.log(frequency.astype(np.float64))
        squares = np.square(times * idf[number])
        norms = np.sqrt(np.bincount(row_of, squares, minlength=self.images * self.most))
        found = times.astype(np.float64)
        if not len(pairs):
            pairs, found = np.array([-1]), np.zeros(1)
        parts = (known, idf, pairs, found, norms)
        return Counts(*(torch.from_numpy(part).to(device) for part in parts))


class CiderReward:
    """CIDEr-D, 0 to 10, of captions of known images; document frequencies are theirs.

    Vedantam et al., "CIDEr", CVPR 2015; the -D variant as coco-caption computes it, without its
    stemming: what the reports say / 100.
    """

    def __init__(self, references: References) -> None:
        self._references = references

    def __call__(self, images: Tensor, captions: Tensor) -> Tensor:
        """Rewards (B,), float64.

        Args:
            images: (P,), numbers of images that have references.
            captions: (B, T) token ids, <pad> after each.
        """
        images, lengths, known = *_expanded(images, captions), self._references
        rows = known.rows(images)  # (B, R)
        total = torch.zeros(rows.shape, dtype=torch.float64, device=captions.device)
        for n, counts in enumerate(known.counts, start=1):
            grams = ngrams(captions, lengths, n, known.base)  # (B, T')
            ours = _times(grams)
            theirs, idf = counts.of(grams, rows, unseen=known.log_images)  # (B, R, T'), (B, T')
            idf = idf.masked_fill(grams == NO_NGRAM, 0)
            # Clipped: saying it more often does not pay. An n-gram that is said twice stands in
            # two places, so each place has its share.
            shared = torch.minimum(theirs, ours.unsqueeze(1)) * theirs / ours.unsqueeze(1)
            match = (shared * idf.square().unsqueeze(1)).sum(-1)  # (B, R)
            norm = (ours * idf.square()).sum(-1, keepdim=True).sqrt() * counts.norms[rows]
            total += torch.where(match > 0, match / norm.clamp_min(1e-300), 0)
        apart = (known.lengths[images] - lengths.unsqueeze(1)).double()
        total = total * torch.exp(-apart.square() / (2 * SIGMA**2))
        return 10 * total.sum(dim=1) / (ORDERS * known.filled[images])


class BleuReward:
    """BLEU-4, 0 to 1, of captions of known images, one by one.

    A caption alone often has no four words in a row that a reference has. So one is added to the
    matches and the n-grams of every order above 1 (Lin and Och, "ORANGE", COLING 2004).
    """

    def __init__(self, references: References) -> None:
        self._references = references

    def __call__(self, images: Tensor, captions: Tensor) -> Tensor:
        """Rewards (B,), float64; arguments as of `CiderReward`."""
        lengths, closest, *matched = self.counts(images, captions)
        logs = (matched[0] / lengths.clamp_min(1)).log()
        for n in range(2, ORDERS + 1):  # an order that it lacks does it no good
            logs = logs + ((matched[n - 1] + 1) / ((lengths + 1 - n).clamp_min(1) + 1)).log()
        brevity = (1 - closest / lengths.clamp_min(1)).clamp_max(0)
        return torch.where(matched[0] > 0, torch.exp(logs / ORDERS + brevity), 0)

    def counts(self, images: Tensor, captions: Tensor) -> list[Tensor]:
        """Of each caption, float64 (B,) each: its tokens, those of the reference nearest in length
        (of two, the shorter), and for n = 1 to 4 how many of its n-grams are in a reference,
        clipped."""
        images, lengths, known = *_expanded(images, captions), self._references
        rows = known.rows(images)  # (B, R)
        matched = []
        for n, counts in enumerate(known.counts, start=1):
            grams = ngrams(captions, lengths, n, known.base)  # (B, T')
            ours, theirs = _times(grams), counts.of(grams, rows, unseen=0)[0].amax(dim=1)  # (B, T')
            matched.append((torch.minimum(theirs, ours) / ours).sum(dim=1))  # (B,)
        theirs = known.lengths[images]  # (B, R)
        apart = 2 * (theirs - lengths.unsqueeze(1)).abs() + (theirs > lengths.unsqueeze(1))
        missing = torch.arange(known.most, device=rows.device) >= known.filled[images].unsqueeze(1)
        apart = apart.masked_fill(missing, torch.iinfo(apart.dtype).max)
        closest = theirs.gather(1, apart.argmin(dim=1, keepdim=True)).squeeze(1)
        return [lengths.double(), closest.double(), *matched]


def ngrams(tokens: Tensor, lengths: Tensor, n: int, base: int) -> Tensor:
    """The n-gram that begins at each place of (B, T), as one number: (B, max(1, T + 1 - n)).

    Up to 55,108 words any four fit exactly; past that two that differ hardly ever meet in one
    number (int64 wraps around).

    Args:
        lengths: (B,), of each row; where no n-gram fits, NO_NGRAM stands.
    """
    T = tokens.shape[1]
    places = max(1, T + 1 - n)
    tokens = torch.nn.functional.pad(tokens, (0, max(0, n - T)))
    number = tokens[:, :places]
    for shift in range(1, n):
        number = number * base + tokens[:, shift : shift + places]
    fits = torch.arange(places, device=tokens.device) + n <= lengths.unsqueeze(1)
    return number.masked_fill(~fits, NO_NGRAM)


def _times(grams: Tensor) -> Tensor:
    """How often each n-gram of (B, T') stands in its own row, float64."""
    return (grams.unsqueeze(2) == grams.unsqueeze(1)).sum(-1).double()


def _expanded(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """The image and the length of each caption, (B,) each."""
    return images.repeat_interleave(len(captions) // len(images)), (captions != PAD).sum(dim=1)


def _looked_up(table: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where values stand in a sorted table, and whether they do."""
    place = torch.searchsorted(table, values).clamp_max(len(table) - 1)
    return place, table[place] == values
