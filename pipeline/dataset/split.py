"""One split of the data set, as decoders take it."""

import logging
from dataclasses import dataclass

import torch

from pipeline.captions.table import CaptionTable
from pipeline.captions.vocabulary import Vocabulary
from pipeline.dataset.batching import EncodedCaptions, encode
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.decoders.captioner_file import MOST_WORDS
from pipeline.features.feature_cache import FeatureCache
from pipeline.runtime.errors import counted

log = logging.getLogger(__name__)

LONGEST = 0.995  # this quantile of the captions' lengths


@dataclass(frozen=True)
class Split:
    """N images' features and captions; `references[i]` are image i's, in tokens."""

    features: FeatureDataset
    references: list[list[list[str]]]
    captions: EncodedCaptions

    @property
    def max_length(self) -> int:
        """Words of a caption that 99.5 % of these do not exceed: what a decoder may say at the
        most. Beyond, it has hardly seen a caption go on."""
        words = self.captions.lengths.float() - 2  # less <start> and <end>
        return min(MOST_WORDS, int(words.quantile(LONGEST, interpolation="higher")))


def load_split(
    cache: FeatureCache,
    table: CaptionTable,
    name: str,
    vocabulary: Vocabulary,
    device: torch.device,
) -> Split:
    """Load the features and captions of one split, and log how many there are.

    Raises:
        InputError: the table has no such split, or the cache lacks images of it.
    """
    own = table.split(name)
    features = FeatureDataset(cache, own.ids, device)
    captions = encode(own.references, vocabulary)
    log.info("%s: %d captions of %s", name, len(captions), counted(len(features), "image"))
    return Split(features, own.references, captions)
