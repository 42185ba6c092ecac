"""Captions, as words, of any number of pictures."""

from torch import Tensor

from pipeline.model.decoder import Stepwise
from pipeline.model.features import PictureFeatures
from pipeline.model.search import Search, beam_search
from pipeline.progress import bar
from pipeline.store.vocabulary import Vocabulary


def caption_features(
    decoder: Stepwise,
    features: Tensor | PictureFeatures,
    vocabulary: Vocabulary,
    search: Search,
    batch_size: int,
) -> list[list[str]]:
    """The tokens of one caption per picture, for features (N, …), `batch_size` at a time."""
    captions = []
    for begin in bar(range(0, len(features), batch_size), label="caption", unit="batch"):
        part = features[begin : begin + batch_size]
        captions += [vocabulary.decode(one.words) for one in beam_search(decoder, part, search)]
    return captions
