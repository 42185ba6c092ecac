"""Consensus reranking: of the captions that beam search finds, take the one that is most like the
captions of similar training images.

Devlin et al., "Exploring Nearest Neighbor Approaches for Image Captioning", 2015, and Mao et al.,
"Deep Captioning with Multimodal Recurrent Neural Networks", ICLR 2015. A caption's score is that of
the search plus `consensus_weight` times its mean CIDEr-D (0 to 10) with the captions of each of
the `num_neighbors` nearest training images. In this mean the more similar images weigh more.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.captions.vocabulary import PAD
from pipeline.decoders.decoder import StepDecoder
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig, Hypothesis, Search
from pipeline.reranking.neighbors import Neighbors

MAX_ELEMENTS = 20_000_000  # of one array while captions are scored


def build_search(
    decoder: StepDecoder, config: BeamSearchConfig, neighbors: Callable[[], Neighbors]
) -> Search:
    """Beam search; with consensus reranking if that has a weight, which `neighbors` is read for."""
    if not config.consensus_weight:
        return BeamSearch(decoder, config)
    return ConsensusSearch(decoder, config, neighbors())


class ConsensusSearch:
    """Beam search and reranking. It returns every caption that the beams found, the best first."""

    def __init__(
        self, decoder: StepDecoder, config: BeamSearchConfig, neighbors: Neighbors
    ) -> None:
        all_beams = replace(config, num_return_sequences=config.beam_size // config.beam_groups)
        self._search, self._neighbors = BeamSearch(decoder, all_beams), neighbors
        self._weight, self._count = config.consensus_weight, config.num_neighbors
        self._cider = neighbors.cider  # counts the n-grams of all their captions, now
        self._references = max(map(len, neighbors.captions))

    def __call__(self, features: Tensor) -> list[list[Hypothesis]]:
        found = self._search(features)
        weights, nearest = self._neighbors.nearest(features, self._count)  # (P, k) each
        token_ids = [[caption.token_ids for caption in captions] for captions in found]
        scores = self._score(token_ids, nearest)  # (P, k, S)
        consensus = (weights.unsqueeze(-1) * scores).sum(dim=1)
        reranked = (
            [
                replace(caption, score=caption.score + self._weight * value)
                for caption, value in zip(captions, values, strict=False)
            ]
            for captions, values in zip(found, consensus.tolist(), strict=True)
        )
        return [sorted(captions, key=lambda one: one.score, reverse=True) for captions in reranked]

    def _score(self, captions: list[list[list[int]]], nearest: Tensor) -> Tensor:
        """The CIDEr-D (P, k, S) of each image's captions with those of its neighbours (P, k);
        images with fewer than S captions have numbers without a meaning at their end."""
        S, (P, k) = max(map(len, captions)), nearest.shape
        rows = [
            torch.tensor(own[i] if i < len(own) else [], dtype=torch.long)
            for own in captions
            for i in range(S)
        ]
        token_ids = pad_sequence(rows, batch_first=True, padding_value=PAD).to(nearest.device)
        T = token_ids.shape[1]
        images = max(1, MAX_ELEMENTS // (k * S * T * max(T, self._references)))
        parts = zip(token_ids.view(P, 1, S, -1).split(images), nearest.split(images), strict=True)
        scores = [
            # Every neighbour scores all captions of its image.
            self._cider(near.flatten(), own.expand(-1, k, -1, -1).flatten(0, 2))
            for own, near in parts
        ]
        return torch.cat(scores).view(P, k, S)
