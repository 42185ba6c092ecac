"""BLEU-4 and CIDEr for validation: as `pipeline.metrics.scores`, with the references counted once
for all epochs."""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.captions.vocabulary import PAD
from pipeline.metrics.bleu import SCALE, add_ngram_totals, bleu_from_counts
from pipeline.metrics.rewards import BleuReward, CiderReward, References
from pipeline.metrics.scores import Tokens

BASE = 55_000  # token ids whose n-grams fit into an int64 each


class SplitScores:
    """Scores captions of the images of a split."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        tokens = dict.fromkeys(token for refs in references for ref in refs for token in ref)
        self._ids = {token: PAD + 1 + i for i, token in enumerate(tokens)}
        token_ids = [[self._encode(ref, self._ids) for ref in refs] for refs in references]
        counted = References(token_ids, max(BASE, 2 * len(tokens)))
        self._cider, self._bleu = CiderReward(counted), BleuReward(counted)

    def __call__(self, captions: Sequence[Tokens]) -> tuple[float, float]:
        """Return corpus BLEU-4 and mean CIDEr-D of one caption per image, x100."""
        ids = dict(self._ids)  # tokens that are in no reference get the next free ids
        rows = [torch.tensor(self._encode(caption, ids), dtype=torch.int64) for caption in captions]
        token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        images = torch.arange(len(captions))
        counts = torch.stack(self._bleu.counts(images, token_ids), dim=1).numpy()
        sums = add_ngram_totals(counts.round().astype(np.int64)).sum(axis=0)
        cider = self._cider(images, token_ids).mean()
        return float(bleu_from_counts(sums)[3]), SCALE * float(cider)

    @staticmethod
    def _encode(tokens: Tokens, ids: dict[str, int]) -> list[int]:
        return [ids.setdefault(token, len(ids) + PAD + 1) for token in tokens]
