"""One split of the data set: its features and encoded captions."""

import logging
from dataclasses import dataclass

import torch

from pipeline.captions.table import CaptionTable
from pipeline.captions.vocabulary import Vocabulary
from pipeline.dataset.batching import EncodedCaptions, encode
from pipeline.dataset.feature_cache import FeatureCache
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.decoders.captioner_file import MAX_LENGTH
from pipeline.runtime.errors import pluralize

log = logging.getLogger(__name__)

LENGTH_QUANTILE = 0.995


@dataclass(frozen=True)
class Split:
    """The features and captions of N images; `references[i]` are image i's, in tokens."""

    features: FeatureDataset
    references: list[list[list[str]]]
    captions: EncodedCaptions

    @property
    def max_length(self) -> int:
        """The maximum caption length, in tokens, for a decoder trained on this split: 99.5 % of
        its captions do not exceed it."""
        lengths = self.captions.lengths.float() - 2  # less <start> and <end>
        return min(MAX_LENGTH, int(lengths.quantile(LENGTH_QUANTILE, interpolation="higher")))


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
    features = FeatureDataset(cache, own.ids, device, augmented=name == "train")
    captions = encode(own.references, vocabulary)
    log.info("%s: %d captions of %s", name, len(captions), pluralize(len(features), "image"))
    return Split(features, own.references, captions)
