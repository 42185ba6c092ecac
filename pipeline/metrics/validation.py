"""BLEU-4 and CIDEr of caption after caption set against the same references: what
`pipeline.metrics.scores` gives, with the references counted once."""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.captions.vocabulary import PAD
from pipeline.metrics.bleu import SCALE, add_ngram_totals, bleu_from_counts
from pipeline.metrics.rewards import BleuReward, CiderReward, References
from pipeline.metrics.scores import Tokens

BASE = 55_000  # words for whose n-grams a number each is exact


class SplitScores:
    """Scores captions of the images of a split."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        words = dict.fromkeys(word for image in references for one in image for word in one)
        self._ids = {word: PAD + 1 + number for number, word in enumerate(words)}
        rows = [[self._encode(one, self._ids) for one in image] for image in references]
        counted = References(rows, max(BASE, 2 * len(words)))
        self._cider, self._bleu = CiderReward(counted), BleuReward(counted)

    def __call__(self, captions: Sequence[Tokens]) -> tuple[float, float]:
        """Corpus BLEU-4 and mean CIDEr-D of one caption of each image, x100."""
        ids = dict(self._ids)  # words that no reference has are numbered as they come
        rows = [torch.tensor(self._encode(one, ids), dtype=torch.int64) for one in captions]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        images = torch.arange(len(captions))
        counts = torch.stack(self._bleu.counts(images, tokens), dim=1).numpy()
        sums = add_ngram_totals(counts.round().astype(np.int64)).sum(axis=0)
        cider = self._cider(images, tokens).mean()
        return float(bleu_from_counts(sums)[3]), SCALE * float(cider)

    @staticmethod
    def _encode(tokens: Tokens, ids: dict[str, int]) -> list[int]:
        return [ids.setdefault(word, len(ids) + PAD + 1) for word in tokens]
