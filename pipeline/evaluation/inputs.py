"""What is read before captions of a split are searched: models, features and captions that fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.captions.table import CaptionTable, read_table
from pipeline.dataset.feature_cache import FeatureCache, read_features
from pipeline.decoders.captioner_file import TrainedDecoder, require_same_split
from pipeline.decoders.decoder import StepDecoder
from pipeline.evaluation.ensemble import build_ensemble, read_models
from pipeline.generation.beam_search import BeamSearchConfig, Search
from pipeline.reranking.consensus import build_search
from pipeline.reranking.neighbors import read_neighbors
from pipeline.runtime.checkpoint import discard_if_complete


@dataclass(frozen=True)
class EvaluationInputs:
    """One model, or the members of an ensemble, and what they are evaluated on."""

    models: list[TrainedDecoder]
    decoder: StepDecoder
    cache: FeatureCache
    table: CaptionTable

    def search(self, config: BeamSearchConfig, neighbors: Path, device: torch.device) -> Search:
        """The search with these models; consensus reranking reads `neighbors`.

        Raises:
            InputError: that cannot be used, or is of another vocabulary, split or other features.
        """
        read = partial(read_neighbors, neighbors, self.models[0], device)
        return build_search(self.decoder, config, read)


def read_inputs(
    models: Sequence[Path], features: Path, captions: Path, device: torch.device
) -> EvaluationInputs:
    """Read all of them.

    Raises:
        InputError: a file cannot be used, or a model was trained on other features or splits.
    """
    cache = read_features(features)
    trained = read_models(models, device)
    decoder = build_ensemble(trained, cache.recipe, where=str(features))
    for path in models:
        discard_if_complete(path)
    table = read_table(captions)
    for path, model in zip(models, trained, strict=True):
        require_same_split(model, table.info.split_digest, where=str(path))
    return EvaluationInputs(trained, decoder, cache, table)
