"""One split of the data set, as decoders take it."""

from dataclasses import dataclass

import pandas as pd
import torch

from pipeline.model.batches import EncodedCaptions, encode
from pipeline.model.features import PictureFeatures
from pipeline.store.features import Features
from pipeline.store.model import MOST_WORDS
from pipeline.store.table import captions_of
from pipeline.store.vocabulary import Vocabulary

LONGEST = 0.995  # this quantile of the captions' lengths


@dataclass(frozen=True)
class Split:
    """N pictures' features and captions; `references[i]` are picture i's, in tokens."""

    features: PictureFeatures
    references: list[list[list[str]]]
    captions: EncodedCaptions

    @property
    def max_length(self) -> int:
        """Words of a caption that 99.5 % of these do not exceed: what a decoder may say at the
        most. Beyond, it has hardly seen a caption go on."""
        words = self.captions.lengths.float() - 2  # less <start> and <end>
        return min(MOST_WORDS, int(words.quantile(LONGEST, interpolation="higher")))


def load_split(
    cache: Features, table: pd.DataFrame, name: str, vocabulary: Vocabulary, device: torch.device
) -> Split:
    """
    Raises:
        InputError: the table has no such split, or the cache lacks pictures of it.
    """
    own = captions_of(table, name)
    features = PictureFeatures(cache, own.ids, device)
    return Split(features, own.references, encode(own.references, vocabulary))
