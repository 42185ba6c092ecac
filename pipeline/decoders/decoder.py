"""The base class of all decoders: embedding, output layer, and the methods that subclasses define.

Shapes, here and wherever decoders are used:
    P images, C captions (or beams) per image, B = P * C captions, T positions, V vocabulary size,
    N grid cells, D feature size, E embedding size, H hidden size, L layers.
    Row i of the captions belongs to image i // C.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoders.dropout import Dropout

VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class DecoderState:
    """What one step passes to the next; a search selects its rows without knowing its content."""

    memory: tuple[Tensor, ...]  # (P, …), what does not change from step to step
    hidden: tuple[Tensor, ...]  # (B, …), what does

    def index_select(self, rows: Tensor, images: Tensor | None = None) -> "DecoderState":
        """Select rows (B',) of the captions and, if given, images (P',) of the memory."""
        memory = self.memory
        if images is not None:
            memory = tuple(tensor.index_select(0, images) for tensor in memory)
        return DecoderState(memory, tuple(tensor.index_select(0, rows) for tensor in self.hidden))


class StepDecoder(Protocol):
    """What a search needs of a decoder."""

    @abstractmethod
    def init_state(self, features: Tensor) -> DecoderState:
        """The state before the first token of one caption per image."""

    @abstractmethod
    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits (B, V) of the tokens after `token_ids` (B,), and the new state."""


@dataclass(frozen=True)
class DecoderConfig:
    """What is needed, besides the weights, to build a decoder.

    The model file stores it. A new field gets no default: increment `FORMAT` in `captioner_file`,
    and older files are refused.
    """

    decoder: str  # a name in `pipeline.decoders.registry`
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
        own = {field.name: params[field.name] for field in fields(cls) if field.name in params}
        return cls(feature_shape=feature_shape, vocabulary_size=vocabulary_size, **own)


class Decoder(nn.Module, StepDecoder):
    """A caption decoder over the features of a frozen CNN.

    A subclass defines `forward_hidden`, `init_state` and `step`, which must agree: `step` by step
    gives the logits of `forward`. Dropout belongs in `Dropout` modules (`self.dropout`) and in RNN
    modules only, never in `F.dropout`: self-critical training turns it off in modules while it
    samples captions.
    """

    feature_mean: Tensor  # (D,)
    feature_std: Tensor  # (D,)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # Features are standardised with the training images' mean and standard deviation: what
        # all images share carries no information.
        self.register_buffer("feature_mean", torch.zeros(config.feature_shape[-1]))
        self.register_buffer("feature_std", torch.ones(config.feature_shape[-1]))
        V, H = config.vocabulary_size, config.hidden_size
        self.embed = nn.Embedding(V, config.embed_size)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = Dropout(config.dropout)
        # Tied: input and output share one embedding (Press & Wolf, EACL 2017).
        tied = config.tie_embeddings
        self.output = None if tied else nn.Linear(H, V)
        self.bias = nn.Parameter(torch.zeros(V)) if tied else None

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation (D,) of the training images' features."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp_min(1e-3))  # a constant feature must not divide by zero

    def normalize_features(self, features: Tensor) -> Tensor:
        """(P, D) -> (P, D), or (P, height, width, D) -> (P, N, D)."""
        features = (features - self.feature_mean) / self.feature_std
        return features if features.dim() == 2 else features.flatten(1, 2)

    @abstractmethod
    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run with teacher forcing up to the output layer, which `logits` applies.

        The two are apart so that training applies the output layer, most of the arithmetic, only
        where a caption has tokens.

        Args:
            features: of P images, (P, D) or (P, height, width, D).
            token_ids: (B, T), beginning with <start>.

        Returns:
            (B, T, ·), from which `logits` predicts the token after each of `token_ids`; and the
            attention weights (B, T, N) at these tokens, or None without attention to a grid. A
            CPU may leave zeros where a caption is over.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """What `forward_hidden` returned, (…, ·) -> logits (…, V) of the next token."""
        hidden = self.dropout(hidden)
        if self.output is None:
            return _project(hidden, self.embed.weight, self.bias)
        return _project(hidden, self.output.weight, self.output.bias)

    def forward(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Teacher forcing: logits (B, T, V) of the token after each of `token_ids` (B, T)."""
        return self.logits(self.forward_hidden(features, token_ids)[0])

    def attention_weights(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Attention weights (B, T, N) with which the token after each of `token_ids` was predicted.

        Each row sums to one, together with the sentinel's weight in adaptive attention.

        Raises:
            TypeError: this decoder does not attend to a grid.
        """
        _, weights = self.forward_hidden(features, token_ids)
        if weights is None:
            raise TypeError(f"{self.config.decoder} does not attend to a grid")
        return weights


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, H) and (V, H) -> (…, V). With an odd vocabulary size a GPU multiplies at a fraction of
    its speed, so there the weights are padded and the surplus columns dropped."""
    num_pad = -len(weight) % VOCABULARY_MULTIPLE
    if hidden.device.type == "cpu" or not num_pad:
        return F.linear(hidden, weight, bias)
    assert bias is not None
    padded = F.linear(hidden, F.pad(weight, (0, 0, 0, num_pad)), F.pad(bias, (0, num_pad)))
    return padded[..., : len(weight)]


def expand_to_captions(rows: Tensor, token_ids: Tensor) -> Tensor:
    """One row per image (P, …) -> one row per caption (B, …)."""
    # In a graph that is exported, `len` would be a constant, and `repeat_interleave` fails.
    captions = token_ids.shape[0] // rows.shape[0]
    if captions == 1:
        return rows
    return rows.unsqueeze(1).expand(-1, captions, *rows.shape[1:]).flatten(0, 1)
