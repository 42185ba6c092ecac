"""Captions, as words, of any number of pictures, and what they score."""

from torch import Tensor

from pipeline.model.decoder import Stepwise
from pipeline.model.features import PictureFeatures
from pipeline.model.search import Search, beam_search
from pipeline.model.split import Split
from pipeline.progress import bar
from pipeline.scoring.metrics import bleu, cider
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


# Greedy: the best epoch by it is the best by beam search too, or next to it, at a fifth the time.
VALIDATION = Search(beam=1, max_length=20)


def greedy_scores(decoder: Stepwise, data: Split, vocabulary: Vocabulary) -> tuple[float, float]:
    """BLEU-4 and CIDEr, x100, of greedy captions."""
    captions = caption_features(decoder, data.features, vocabulary, VALIDATION, batch_size=250)
    return bleu(captions, data.references)[3], cider(captions, data.references)[0]
