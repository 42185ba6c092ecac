"""Captions of a data set, and the scores of greedy captions for validation."""

import logging
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from pipeline.captions.vocabulary import Vocabulary
from pipeline.config.schema import EvaluateConfig
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig, Hypothesis, Search
from pipeline.metrics.baselines import best_constant_caption
from pipeline.metrics.scores import cider
from pipeline.metrics.validation import SplitScores
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)


def generate_captions(
    search: Search,
    features: Tensor | FeatureDataset,
    vocabulary: Vocabulary,
    batch_size: int,
    ranks: Ranks = ALONE,
) -> list[list[str]]:
    """One caption per image, in tokens, for features (N, …), `batch_size` images at a time."""
    found = find_captions(search, features, batch_size, ranks)
    return [vocabulary.decode(caption.token_ids) for caption in found]


def find_captions(
    search: Search,
    features: Tensor | FeatureDataset,
    batch_size: int,
    ranks: Ranks = ALONE,
) -> list[Hypothesis]:
    """The best caption of each image, for features (N, …), `batch_size` images at a time, which the
    ranks share out."""
    batches = progress_bar(
        range(0, len(features), batch_size), label="caption", unit="batch", shown=ranks.is_main
    )
    found = [
        [
            max(captions, key=lambda hypothesis: hypothesis.score)
            for captions in search(features[begin : begin + batch_size])
        ]
        for begin in ranks.shard(batches)
    ]
    return [caption for captions in ranks.merge_shards(found) for caption in captions]


def search_config(config: EvaluateConfig, trained_length: int) -> BeamSearchConfig:
    """The search of the evaluate params, for a model trained on captions of this many tokens."""
    names = {field.name for field in fields(BeamSearchConfig)}
    params = config.model_dump(include=names)
    if config.max_length == "auto":
        params["max_length"] = trained_length
    return BeamSearchConfig(**params)


def search_batch_size(config: EvaluateConfig, device: torch.device) -> int:
    """Images to search at once; a GPU needs more to keep its cores busy."""
    if config.batch_size != "auto":
        return config.batch_size
    return 100 if device.type == "cpu" else 500


def greedy_validator(
    decoder: Decoder,
    split: Split,
    vocabulary: Vocabulary,
    max_length: int,
    ranks: Ranks = ALONE,
) -> Callable[[], dict[str, float]]:
    """A function that computes BLEU-4 and CIDEr, x100, of a decoder's greedy captions of a split.

    They select the same epoch as beam search, or nearly, in a fifth of the time.
    """
    search = BeamSearch(decoder, BeamSearchConfig(beam_size=1, max_length=max_length))
    scores = SplitScores(split.references)

    def validate() -> dict[str, float]:
        decoder.eval()
        captions = generate_captions(search, split.features, vocabulary, 250, ranks)
        return dict(zip(("bleu_4", "cider"), scores(captions), strict=True))

    return validate


def warn_if_below_constant(score: float, train: Split, val: Split) -> None:
    """Warn if this CIDEr on `val` is below that of the best constant caption."""
    captions = (caption for captions in train.references for caption in captions)
    constant = best_constant_caption(captions, val.references)
    baseline = cider([constant] * len(val.references), val.references)[0]
    if score < baseline:
        log.warning(
            "the kept model's val CIDEr, %.2f, is below the %.2f of a constant caption ('%s'): "
            "it has learned nothing about the images yet; it needs more epochs or more images",
            score,
            baseline,
            " ".join(constant),
        )
