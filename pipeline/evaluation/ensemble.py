"""Several trained decoders that speak as one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.decoders.captioner_file import TrainedDecoder, read_model
from pipeline.decoders.decoder import Decoder, DecoderState, StepDecoder
from pipeline.features.recipe import FeatureRecipe, require_same_recipe
from pipeline.runtime.errors import InputError


class Ensemble:
    """The mean of the members' next-word probabilities; a decoder to every search.

    Members may be any decoders of one vocabulary. Where the features are grids, members that take
    vectors get the grids' means, which is what pooling is.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        self.members = list(members)
        self._parts: list[tuple[int, int]] = []  # tensors of each member's memory and beams

    def init_state(self, features: Tensor) -> DecoderState:
        states = [one.init_state(features_for(one, features)) for one in self.members]
        self._parts = [(len(state.memory), len(state.hidden)) for state in states]
        return _merge_states(states)

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Log-probabilities (B, V), which are logits as good as any, and the state."""
        memory, beams = list(state.memory), list(state.hidden)
        shares, after = [], []
        for member, (of_memory, of_beams) in zip(self.members, self._parts, strict=True):
            own = DecoderState(tuple(memory[:of_memory]), tuple(beams[:of_beams]))
            del memory[:of_memory], beams[:of_beams]
            logits, own = member.step(words, own)
            shares.append(logits.float().softmax(dim=-1))
            after.append(own)
        return torch.stack(shares).mean(dim=0).log(), _merge_states(after)


def features_for(decoder: Decoder, features: Tensor) -> Tensor:
    """Features (P, …) as this decoder takes them: grids, or their means."""
    pooled = len(decoder.config.feature_shape) == 1
    return features.mean(dim=(1, 2)) if pooled and features.dim() == 4 else features


def _merge_states(states: Sequence[DecoderState]) -> DecoderState:
    return DecoderState(
        tuple(part for state in states for part in state.memory),
        tuple(part for state in states for part in state.hidden),
    )


def read_models(paths: Sequence[Path], device: torch.device) -> list[TrainedDecoder]:
    """Models that can speak as one.

    Raises:
        InputError: one cannot be used, or has another vocabulary than the first.
    """
    models = [read_model(path, device) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if model.vocabulary != models[0].vocabulary:
            raise InputError(
                f"{path} has another vocabulary than {paths[0]}; only models of one vocabulary "
                "can speak as one"
            )
    return models


def build_ensemble(
    models: Sequence[TrainedDecoder], features: FeatureRecipe, where: str
) -> StepDecoder:
    """The decoder of one model, or the ensemble of several, for features made in this way.

    Raises:
        InputError: a model learned from other features; `where` says whose these are.
    """
    for model in models:
        pooled = model.recipe.layer == "pooled" and len(models) > 1  # see Ensemble
        require_same_recipe(
            replace(features, layer="pooled") if pooled else features, model.recipe, where
        )
    return models[0].decoder if len(models) == 1 else Ensemble([one.decoder for one in models])
