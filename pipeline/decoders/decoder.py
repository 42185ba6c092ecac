"""What every decoder is: the words' embedding before it, the words' scores behind it, and between
them three ways to run it.

Shapes: P images, C captions (or beams) of each, B = P * C of them in all, T words, V words in
the vocabulary, N cells of a grid, D feature size, E embedding size, H hidden size, L layers.
Row i of the captions belongs to image i // C, here and wherever a decoder meets both.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoders.dropout import Dropout

COLUMNS = 64


@dataclass(frozen=True)
class DecoderState:
    """What a step hands to the next one; a search reorders and drops rows without knowing what is
    in them."""

    memory: tuple[Tensor, ...]  # a row an image, (P, …): what no step changes
    beams: tuple[Tensor, ...]  # a row a caption, (B, …)

    def rows(self, beams: Tensor, images: Tensor | None = None) -> "DecoderState":
        """The state with these captions' rows and, where given, these images'."""
        memory = self.memory
        if images is not None:
            memory = tuple(part.index_select(0, images) for part in memory)
        return DecoderState(memory, tuple(part.index_select(0, beams) for part in self.beams))


class StepDecoder(Protocol):
    """What a search needs of a decoder."""

    def start(self, features: Tensor) -> DecoderState:
        """State before the first word, from the features of P images; one caption of each."""

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits (B, V) of the words that follow `words` (B,), and the state after them."""


@dataclass(frozen=True)
class DecoderConfig:
    """What is needed, besides the weights, to build a decoder.

    The model file stores it. A new key has no default: `FORMAT` in `captioner_file` goes up, and
    older files are refused.
    """

    decoder: str  # of `pipeline.decoders.registry`
    rnn_type: Literal["lstm", "gru"]
    feature_shape: Sequence[int]  # (D,) pooled or (height, width, D) grid
    vocabulary_size: int
    embed_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    dropout: float
    tie_embeddings: bool

    @classmethod
    def of(
        cls, params: Mapping[str, Any], feature_shape: Sequence[int], vocabulary_size: int
    ) -> Self:
        """Take the fields of the same names from `params`, the train params as a mapping."""
        names = {field.name for field in fields(cls)} & params.keys()
        own = {name: params[name] for name in names}
        return cls(feature_shape=feature_shape, vocabulary_size=vocabulary_size, **own)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"feature_shape": list(self.feature_shape)}


class Decoder(nn.Module, ABC):
    """Captions from features."""

    feature_mean: Tensor  # (D,)
    feature_std: Tensor  # (D,)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # What all images have in common says nothing: features are seen as deviations from the
        # training images' mean, in standard deviations.
        self.register_buffer("feature_mean", torch.zeros(config.feature_shape[-1]))
        self.register_buffer("feature_std", torch.ones(config.feature_shape[-1]))
        self.embed = nn.Embedding(config.vocabulary_size, config.embed_size)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = Dropout(config.dropout)
        # Tied: the same vector says and hears a word (Press & Wolf, EACL 2017).
        self.output = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocabulary_size)
        )
        self.bias = (
            nn.Parameter(torch.zeros(config.vocabulary_size)) if config.tie_embeddings else None
        )

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """Remember the mean and deviation (D,) of the training images' features."""
        self.feature_mean.copy_(mean)
        # A feature that never varies carries nothing; do not divide by nothing.
        self.feature_std.copy_(std.clamp_min(1e-3))

    def normalize_features(self, features: Tensor) -> Tensor:
        """(P, D) -> (P, D), or (P, height, width, D) -> (P, N, D)."""
        features = (features - self.feature_mean) / self.feature_std
        return features if features.dim() == 2 else features.flatten(1, 2)

    @abstractmethod
    def hidden(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: (B, T, ·), from which `logits` tells the word after each of `words`.

        Args:
            features: of P images, (P, D) or (P, height, width, D).
            words: (B, T), beginning with <start>.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """What `hidden` gave, (…, ·) -> scores (…, V) of the next word."""
        hidden = self.dropout(hidden)
        if self.output is None:
            return _scores(hidden, self.embed.weight, self.bias)
        return _scores(hidden, self.output.weight, self.output.bias)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: logits (B, T, V) of the word that follows each of `words` (B, T)."""
        return self.logits(self.hidden(features, words))

    @abstractmethod
    def start(self, features: Tensor) -> DecoderState:
        """State before the first word of one caption of each image."""

    @abstractmethod
    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits (B, V) of the words that follow `words` (B,), and the state after them."""

    def attention(self, features: Tensor, words: Tensor) -> Tensor:
        """Where it looked before it said the word after each of `words`: (B, T, N), each word's
        weights summing to one (with the sentinel's, for adaptive attention).

        Raises:
            TypeError: this decoder does not attend to a grid.
        """
        raise TypeError(f"{self.config.decoder} attends to no grid")


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, H) and (V, H) -> (…, V). A GPU multiplies by an odd number of words at a fraction of its
    speed, so there the number is rounded up and what it gave too much is left out."""
    lack = -len(weight) % COLUMNS
    if hidden.device.type == "cpu" or not lack:
        return F.linear(hidden, weight, bias)
    assert bias is not None
    wide = F.linear(hidden, F.pad(weight, (0, 0, 0, lack)), F.pad(bias, (0, lack)))
    return wide[..., : len(weight)]


def expand_to_captions(rows: Tensor, words: Tensor) -> Tensor:
    """A row an image (P, …) -> a row a caption (B, …)."""
    captions = len(words) // len(rows)
    return rows if captions == 1 else rows.repeat_interleave(captions, dim=0)
