"""Decoders that feed the context back into the LSTM (or GRU), one step per token.

Input feeding: Luong et al., EMNLP 2015. Soft attention: Xu et al., "Show, Attend and Tell", ICML
2015. Top-down attention: Anderson et al., "Bottom-Up and Top-Down Attention", CVPR 2018, over grid
cells instead of detected regions.

Shapes as in `pipeline.decoders.decoder`.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from pipeline.decoders.attention import AdditiveAttention, GridEmbedding
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState, expand_to_captions
from pipeline.decoders.recurrent import init_forget_bias


class RNNCell(nn.Module):
    """An LSTM or GRU cell; the first tensor of its state is its output (B, H)."""

    def __init__(self, rnn_type: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tensors = 2 if rnn_type == "lstm" else 1  # of its state
        self.cell = (nn.LSTMCell if rnn_type == "lstm" else nn.GRUCell)(input_size, hidden_size)
        init_forget_bias(self.cell)

    def forward(self, inputs: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.num_tensors == 2:
            return self.cell(inputs, hidden)
        return (self.cell(inputs, hidden[0]),)


class InputFeedingDecoder(Decoder):
    """One step per token, in training too."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.grid_embed = GridEmbedding(config)
        self.attn = AdditiveAttention(config.hidden_size)

    @abstractmethod
    def step_hidden(
        self, inputs: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """What `logits` takes (B, H), the attention weights (B, N) and the state, after embedded
        tokens (B, E)."""

    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        state = self.init_state(features)
        expanded = tuple(expand_to_captions(part, token_ids) for part in state.hidden)
        state = DecoderState(state.memory, expanded)
        outputs, weights = [], []
        for inputs in self.dropout(self.embed(token_ids)).unbind(dim=1):
            output, weight, state = self.step_hidden(inputs, state)
            outputs.append(output)
            weights.append(weight)
        return torch.stack(outputs, dim=1), torch.stack(weights, dim=1)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        output, _, state = self.step_hidden(self.dropout(self.embed(token_ids)), state)
        return self.logits(output), state

    def _memory(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and cells, (P, N, H) each."""
        cells = self.dropout(self.grid_embed(self.normalize_features(features)))
        return self.attn.key(cells), cells


class SoftAttention(InputFeedingDecoder):
    """The previous hidden state attends to the grid; the context enters the LSTM."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        E, H = config.embed_size, config.hidden_size
        self.rnn = RNNCell(config.rnn_type, E + H, H)
        self.init_proj = nn.Linear(H, self.rnn.num_tensors * H)
        self.gate = nn.Linear(H, H)
        self.out_proj = nn.Linear(E + 2 * H, H)

    def init_state(self, features: Tensor) -> DecoderState:
        keys, cells = self._memory(features)
        hidden = torch.tanh(self.init_proj(cells.mean(dim=1)))
        return DecoderState((keys, cells), hidden.chunk(self.rnn.num_tensors, dim=1))

    def step_hidden(
        self, inputs: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        prev_hidden = state.hidden[0]
        context, weights = self.attn(prev_hidden, *state.memory)
        context = torch.sigmoid(self.gate(prev_hidden)) * context
        hidden = self.rnn(torch.cat([inputs, context], dim=1), state.hidden)
        output = torch.tanh(self.out_proj(torch.cat([inputs, hidden[0], context], dim=1)))
        return output, weights, DecoderState(state.memory, hidden)


class TopDownAttention(InputFeedingDecoder):
    """An attention LSTM attends to the grid, and a language LSTM predicts the token."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        E, H = config.embed_size, config.hidden_size
        self.att_lstm = RNNCell(config.rnn_type, H + H + E, H)
        self.lang_lstm = RNNCell(config.rnn_type, H + H, H)

    def init_state(self, features: Tensor) -> DecoderState:
        keys, cells = self._memory(features)
        zeros = torch.zeros_like(cells[:, 0])
        hidden = (zeros,) * (2 * self.att_lstm.num_tensors)
        return DecoderState((keys, cells, cells.mean(dim=1)), hidden)

    def step_hidden(
        self, inputs: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        keys, cells, mean_feature = state.memory
        mean_feature = expand_to_captions(mean_feature, inputs)
        size = self.att_lstm.num_tensors
        att, lang = state.hidden[:size], state.hidden[size:]
        att = self.att_lstm(torch.cat([lang[0], mean_feature, inputs], dim=1), att)
        context, weights = self.attn(att[0], keys, cells)
        lang = self.lang_lstm(torch.cat([context, att[0]], dim=1), lang)
        return lang[0], weights, DecoderState(state.memory, (*att, *lang))
