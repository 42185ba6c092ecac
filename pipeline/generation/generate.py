"""Captions, as words, of any number of images, and what they score."""

import logging

from torch import Tensor

from pipeline.captions.vocabulary import Vocabulary
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig, best_of_groups
from pipeline.metrics.baselines import best_constant_caption
from pipeline.metrics.scores import cider
from pipeline.metrics.validation import SplitScores
from pipeline.runtime.progress import bar

log = logging.getLogger(__name__)


def generate_captions(
    search: BeamSearch,
    features: Tensor | FeatureDataset,
    vocabulary: Vocabulary,
    batch_size: int,
) -> list[list[str]]:
    """The tokens of one caption per image, for features (N, …), `batch_size` at a time."""
    captions = []
    for begin in bar(range(0, len(features), batch_size), label="caption", unit="batch"):
        found = best_of_groups(search(features[begin : begin + batch_size]))
        captions += [vocabulary.decode(one.words) for one in found]
    return captions


class GreedyValidator:
    """BLEU-4 and CIDEr, x100, of a decoder's greedy captions of a split, whenever asked: the best
    epoch by them is the best by beam search too, or next to it, at a fifth the time."""

    def __init__(
        self, decoder: Decoder, split: Split, vocabulary: Vocabulary, max_length: int
    ) -> None:
        self._decoder, self._split, self._vocabulary = decoder, split, vocabulary
        self._search = BeamSearch(decoder, BeamSearchConfig(beam=1, max_length=max_length))
        self._scores = SplitScores(split.references)

    def __call__(self) -> tuple[float, float]:
        self._decoder.eval()
        features = self._split.features
        captions = generate_captions(self._search, features, self._vocabulary, batch_size=250)
        return self._scores(captions)


def warn_below_constant(score: float, learn: Split, data: Split) -> None:
    """Say so where captions of `data` that score this CIDEr are worse than one said of all."""
    captions = (caption for captions in learn.references for caption in captions)
    constant = best_constant_caption(captions, data.references)
    mark = cider([constant] * len(data.references), data.references)[0]
    if score < mark:
        log.warning(
            "the kept model's val CIDEr, %.2f, is below the %.2f of one caption said of every "
            "image ('%s'): it tells nothing of them yet; it needs more epochs or more images",
            *(score, mark, " ".join(constant)),
        )
