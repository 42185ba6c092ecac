"""Show and Tell's decoder: an LSTM (or GRU) that sees the picture first, then the words.

Vinyals et al., "Show and Tell: A Neural Image Caption Generator", CVPR 2015.

Shapes: B captions, T words, V words in the vocabulary, D feature size, E embedding size,
H hidden size, L layers.
"""

from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.dropout import Dropout

# What a step hands to the next one: tensors whose first dimension is the batch, so that a search
# can reorder and drop rows without knowing what is in them.
State = tuple[Tensor, ...]


class Decoder(Protocol):
    """What a search needs of a decoder."""

    def start(self, features: Tensor) -> State:
        """State before the first word, from the features of B pictures."""

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, V) of the words that follow `words` (B,), and the state after them."""


@dataclass(frozen=True)
class DecoderConfig:
    """All that is needed, besides the weights, to build a decoder again."""

    cell: Literal["lstm", "gru"]
    feature_size: int
    vocabulary_size: int
    embed_size: int
    hidden_size: int
    layers: int
    dropout: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class ShowAndTell(nn.Module):
    """Captions from one vector per picture."""

    feature_mean: Tensor  # (D,)
    feature_std: Tensor  # (D,)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # What all pictures have in common says nothing: features are seen as deviations from the
        # training pictures' mean, in standard deviations.
        self.register_buffer("feature_mean", torch.zeros(config.feature_size))
        self.register_buffer("feature_std", torch.ones(config.feature_size))
        self.image = nn.Linear(config.feature_size, config.embed_size)
        self.embed = nn.Embedding(config.vocabulary_size, config.embed_size)
        self.dropout = Dropout(config.dropout)
        rnn = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.rnn = rnn(
            config.embed_size,
            config.hidden_size,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
            batch_first=True,
        )
        self.output = nn.Linear(config.hidden_size, config.vocabulary_size)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        if config.cell == "lstm":
            self._open_forget_gates()

    def _open_forget_gates(self) -> None:
        """Remember by default: a forget bias of one (Jozefowicz et al., ICML 2015)."""
        H = self.config.hidden_size
        for layer in range(self.config.layers):
            with torch.no_grad():
                getattr(self.rnn, f"bias_ih_l{layer}")[H : 2 * H].fill_(1.0)
                getattr(self.rnn, f"bias_hh_l{layer}")[H : 2 * H].zero_()

    def standardize_by(self, features: Tensor) -> None:
        """Remember the mean and deviation of the training pictures' features (N, D)."""
        self.feature_mean.copy_(features.mean(dim=0))
        # A feature that never varies carries nothing; do not divide by nothing.
        self.feature_std.copy_(features.std(dim=0).clamp_min(1e-3))

    def see(self, features: Tensor) -> Tensor:
        """The picture as the first input: (B, D) -> (B, 1, E)."""
        return self.image((features - self.feature_mean) / self.feature_std).unsqueeze(1)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Teacher forcing: logits (B, T, V) of the word that follows each of `words` (B, T).

        Args:
            features: (B, D), one vector per caption.
            words: (B, T), beginning with <start>.
        """
        inputs = torch.cat([self.see(features), self.embed(words)], dim=1)  # (B, 1 + T, E)
        outputs, _ = self.rnn(self.dropout(inputs))  # (B, 1 + T, H)
        # The picture's own step predicts nothing: the first word is predicted from <start>.
        return self.output(self.dropout(outputs[:, 1:]))

    def start(self, features: Tensor) -> State:
        _, state = self.rnn(self.dropout(self.see(features)))
        return self._batch_first(state)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        layers_first = tuple(part.transpose(0, 1).contiguous() for part in state)  # (L, B, H)
        hidden = layers_first if self.config.cell == "lstm" else layers_first[0]
        outputs, hidden = self.rnn(self.dropout(self.embed(words).unsqueeze(1)), hidden)
        return self.output(self.dropout(outputs.squeeze(1))), self._batch_first(hidden)

    def _batch_first(self, state: Tensor | State) -> State:
        parts = state if isinstance(state, tuple) else (state,)
        return tuple(part.transpose(0, 1) for part in parts)  # (B, L, H)
