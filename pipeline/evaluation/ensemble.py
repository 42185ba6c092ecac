"""Ensembles: the mean of several decoders' next-token probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.decoders.captioner_file import TrainedDecoder, read_model
from pipeline.decoders.decoder import Decoder, DecoderState, StepDecoder
from pipeline.features.recipe import FeatureRecipe, require_same_recipe
from pipeline.reranking.neighbors import mean_vectors
from pipeline.runtime.errors import InputError


class Ensemble:
    """A decoder for every search, made of members that share a vocabulary.

    Members can be of any kind. If the features are grids, members that take vectors get the grids'
    means, which is what pooling computes. An instance serves one search at a time: `init_state`
    stores how the members' states are merged.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        self.members = list(members)
        self._sizes: list[tuple[int, int]] = []  # tensors in each member's memory and hidden state

    def init_state(self, features: Tensor) -> DecoderState:
        states = [member.init_state(features_for(member, features)) for member in self.members]
        self._sizes = [(len(state.memory), len(state.hidden)) for state in states]
        return _merge_states(states)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Return log-probabilities (B, V), which are valid logits, and the next state."""
        memory, hidden = list(state.memory), list(state.hidden)
        probs, next_states = [], []
        for member, (num_memory, num_hidden) in zip(self.members, self._sizes, strict=True):
            own = DecoderState(tuple(memory[:num_memory]), tuple(hidden[:num_hidden]))
            del memory[:num_memory], hidden[:num_hidden]
            logits, own = member.step(token_ids, own)
            probs.append(logits.float().softmax(dim=-1))
            next_states.append(own)
        return torch.stack(probs).mean(dim=0).log(), _merge_states(next_states)


def features_for(decoder: Decoder, features: Tensor) -> Tensor:
    """Return features (P, …) in the form that the decoder takes: grids, or their means."""
    pooled = len(decoder.config.feature_shape) == 1
    return mean_vectors(features) if pooled else features


def _merge_states(states: Sequence[DecoderState]) -> DecoderState:
    return DecoderState(
        tuple(tensor for state in states for tensor in state.memory),
        tuple(tensor for state in states for tensor in state.hidden),
    )


def read_models(paths: Sequence[Path], device: torch.device) -> list[TrainedDecoder]:
    """Read the members of an ensemble.

    Raises:
        InputError: a model cannot be used, or its vocabulary is not the first model's.
    """
    models = [read_model(path, device) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if model.vocabulary != models[0].vocabulary:
            raise InputError(
                f"{path} has another vocabulary than {paths[0]}; the models of an ensemble must "
                "share one vocabulary"
            )
    return models


def build_ensemble(
    models: Sequence[TrainedDecoder], features: FeatureRecipe, where: str
) -> StepDecoder:
    """Return the decoder of one model, or the ensemble of several, for features of this recipe.

    Raises:
        InputError: a model was trained on other features; `where` names the given ones.
    """
    for model in models:
        pooled = model.recipe.layer == "pooled" and len(models) > 1  # see Ensemble
        require_same_recipe(
            replace(features, layer="pooled") if pooled else features, model.recipe, where
        )
    decoders = [model.decoder for model in models]
    return decoders[0] if len(decoders) == 1 else Ensemble(decoders)
