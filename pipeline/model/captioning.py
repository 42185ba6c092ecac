"""Captions, as words, of any number of pictures, and what they score."""

from torch import Tensor

from pipeline.model.decoder import Decoder
from pipeline.model.features import PictureFeatures
from pipeline.model.search import BeamSearch, Search, best_of_groups
from pipeline.model.split import Split
from pipeline.progress import bar
from pipeline.scoring.metrics import bleu, cider
from pipeline.store.vocabulary import Vocabulary

# Greedy: the best epoch by it is the best by beam search too, or next to it, at a fifth the time.
VALIDATION = Search(beam=1, max_length=20)


def caption_features(
    search: BeamSearch,
    features: Tensor | PictureFeatures,
    vocabulary: Vocabulary,
    batch_size: int,
) -> list[list[str]]:
    """The tokens of one caption per picture, for features (N, …), `batch_size` at a time."""
    captions = []
    for begin in bar(range(0, len(features), batch_size), label="caption", unit="batch"):
        found = best_of_groups(search(features[begin : begin + batch_size]))
        captions += [vocabulary.decode(one.words) for one in found]
    return captions


class GreedyScores:
    """BLEU-4 and CIDEr, x100, of a decoder's greedy captions of a split, whenever asked."""

    def __init__(self, decoder: Decoder, split: Split, vocabulary: Vocabulary) -> None:
        self._decoder, self._split, self._vocabulary = decoder, split, vocabulary
        self._search = BeamSearch(decoder, VALIDATION)

    def __call__(self) -> tuple[float, float]:
        self._decoder.eval()
        features, references = self._split.features, self._split.references
        captions = caption_features(self._search, features, self._vocabulary, batch_size=250)
        return bleu(captions, references)[3], cider(captions, references)[0]
