"""Captions, as words, of any number of pictures."""

from torch import Tensor

from pipeline.model.decoder import Decoder
from pipeline.model.search import Search, beam_search
from pipeline.progress import bar
from pipeline.store.vocabulary import Vocabulary


def caption_features(
    decoder: Decoder, features: Tensor, vocabulary: Vocabulary, search: Search, batch_size: int
) -> list[list[str]]:
    """The tokens of one caption per picture, for features (N, D), `batch_size` at a time."""
    captions = []
    parts = features.split(batch_size)
    for part in bar(parts, label="caption", unit="batch"):
        captions += [vocabulary.decode(one.words) for one in beam_search(decoder, part, search)]
    return captions
