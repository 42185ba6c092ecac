"""Decoders that feed what they saw back into the LSTM (or GRU), and so must go word by word.

Soft attention: Xu et al., "Show, Attend and Tell", ICML 2015. Top-down attention: Anderson et al.,
"Bottom-Up and Top-Down Attention", CVPR 2018, over grid cells instead of detected regions.

Shapes as in `pipeline.decoders.decoder`.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from pipeline.decoders.attention import AdditiveAttention, Cells
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState, expand_to_captions


class Cell(nn.Module):
    """An LSTM or GRU cell; the first tensor of its state is its output (B, H)."""

    def __init__(self, kind: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.size = 2 if kind == "lstm" else 1
        self.cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(input_size, hidden_size)
        if kind == "lstm":
            with torch.no_grad():  # remember by default
                self.cell.bias_ih[hidden_size : 2 * hidden_size].fill_(1.0)
                self.cell.bias_hh[hidden_size : 2 * hidden_size].zero_()

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.size == 2:
            return self.cell(inputs, state)
        return (self.cell(inputs, state[0]),)


class InputFeedingDecoder(Decoder):
    """One word after the other, in training too."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        *grid, D = config.feature_shape
        self.cells = Cells(D, grid[0] * grid[1], config.hidden_size)
        self.attend = AdditiveAttention(config.hidden_size)

    @abstractmethod
    def advance(self, inputs: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """What `logits` takes (B, H), the weights (B, N) and the state, after a word (B, E)."""

    def hidden(self, features: Tensor, words: Tensor) -> Tensor:
        return self._run_rnn(features, words)[0]

    def attention(self, features: Tensor, words: Tensor) -> Tensor:
        return self._run_rnn(features, words)[1]

    def _run_rnn(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        state = self.start(features)
        state = DecoderState(
            state.memory, tuple(expand_to_captions(part, words) for part in state.beams)
        )
        hidden, weights = [], []
        for inputs in self.dropout(self.embed(words)).unbind(dim=1):
            now, looked, state = self.advance(inputs, state)
            hidden.append(now)
            weights.append(looked)
        return torch.stack(hidden, dim=1), torch.stack(weights, dim=1)

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        hidden, _, state = self.advance(self.dropout(self.embed(words)), state)
        return self.logits(hidden), state

    def _memory(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and cells, (P, N, H) each."""
        cells = self.dropout(self.cells(self.normalize_features(features)))
        return self.attend.key(cells), cells


class SoftAttention(InputFeedingDecoder):
    """The hidden state chooses where to look before each word."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        E, H = config.embed_size, config.hidden_size
        self.rnn = Cell(config.rnn_type, E + H, H)
        self.begin = nn.Linear(H, self.rnn.size * H)
        self.gate = nn.Linear(H, H)
        self.deep = nn.Linear(E + 2 * H, H)

    def start(self, features: Tensor) -> DecoderState:
        keys, cells = self._memory(features)
        beginning = torch.tanh(self.begin(cells.mean(dim=1)))
        return DecoderState((keys, cells), beginning.chunk(self.rnn.size, dim=1))

    def advance(self, inputs: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        before = state.beams[0]
        seen, weights = self.attend(before, *state.memory)
        seen = torch.sigmoid(self.gate(before)) * seen
        after = self.rnn(torch.cat([inputs, seen], dim=1), state.beams)
        hidden = torch.tanh(self.deep(torch.cat([inputs, after[0], seen], dim=1)))
        return hidden, weights, DecoderState(state.memory, after)


class TopDownAttention(InputFeedingDecoder):
    """One LSTM chooses where to look, another one says what is there."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        E, H = config.embed_size, config.hidden_size
        self.look = Cell(config.rnn_type, H + H + E, H)
        self.tell = Cell(config.rnn_type, H + H, H)

    def start(self, features: Tensor) -> DecoderState:
        keys, cells = self._memory(features)
        zeros = cells.new_zeros(len(cells), self.config.hidden_size)
        return DecoderState((keys, cells, cells.mean(dim=1)), (zeros,) * (2 * self.look.size))

    def advance(self, inputs: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        keys, cells, overall = state.memory
        looking, telling = state.beams[: self.look.size], state.beams[self.look.size :]
        overall = expand_to_captions(overall, inputs)
        looking = self.look(torch.cat([telling[0], overall, inputs], dim=1), looking)
        seen, weights = self.attend(looking[0], keys, cells)
        telling = self.tell(torch.cat([seen, looking[0]], dim=1), telling)
        return telling[0], weights, DecoderState(state.memory, (*looking, *telling))
