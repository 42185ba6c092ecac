"""Decoders that feed the context back into the LSTM (or GRU), one step per token.

`step_hidden` computes that step in every search, and in training on a GPU. Training on a CPU uses
`forward_packed`, which computes the same without the captions' padding.

Input feeding: Luong et al., EMNLP 2015. Soft attention: Xu et al., "Show, Attend and Tell", ICML
2015. Top-down attention: Anderson et al., "Bottom-Up and Top-Down Attention", CVPR 2018, over grid
cells instead of detected regions.

Shapes as in `pipeline.decoders.decoder`.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoders.attention import AdditiveAttention, GridEmbedding
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState, expand_to_captions
from pipeline.decoders.packed import PackedCaptions
from pipeline.decoders.rnn_cell import RNNCell, UnrolledCell


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

    @abstractmethod
    def forward_packed(
        self, inputs: Tensor, state: DecoderState, packed: PackedCaptions
    ) -> tuple[Tensor, Tensor]:
        """What `logits` takes (n, H) and the attention weights (n, N), after embedded tokens
        (n, E); the state is that before the first."""

    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        state = self.init_state(features)
        expanded = tuple(expand_to_captions(part, token_ids) for part in state.hidden)
        state = DecoderState(state.memory, expanded)
        inputs = self.dropout(self.embed(token_ids))
        if token_ids.device.type == "cpu":
            packed = PackedCaptions(token_ids, len(features))
            hidden, weights = self.forward_packed(packed.pack(inputs), state, packed)
            return packed.pad(hidden), packed.pad(weights)
        steps = []
        for step_inputs in inputs.unbind(dim=1):
            *output, state = self.step_hidden(step_inputs, state)
            steps.append(output)
        hidden, weights = (torch.stack(parts, dim=1) for parts in zip(*steps, strict=True))
        return hidden, weights

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        output, _, state = self.step_hidden(self.dropout(self.embed(token_ids)), state)
        return self.logits(output), state

    def _memory(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and cells, (P, N, H) each."""
        cells = self.dropout(self.grid_embed(self.normalize_features(features)))
        return self.attn.project_keys(cells), cells


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

    def forward_packed(
        self, inputs: Tensor, state: DecoderState, packed: PackedCaptions
    ) -> tuple[Tensor, Tensor]:
        E = self.config.embed_size
        known = F.linear(inputs, self.rnn.cell.weight_ih[:, :E])
        rnn = UnrolledCell(self.rnn, slice(E, None), known, packed.sizes)
        hidden, outputs, contexts, weights = state.hidden, [], [], []
        for step in packed.steps:
            hidden = step.keep(hidden)
            context, weight = self.attn(hidden[0], *state.memory, step.per_image)
            context = torch.sigmoid(self.gate(hidden[0])) * context
            hidden = rnn([context], hidden)
            outputs.append(hidden[0])
            contexts.append(context)
            weights.append(weight)
        output = torch.cat([inputs, torch.cat(outputs), torch.cat(contexts)], dim=1)
        return torch.tanh(self.out_proj(output)), torch.cat(weights)


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

    def forward_packed(
        self, inputs: Tensor, state: DecoderState, packed: PackedCaptions
    ) -> tuple[Tensor, Tensor]:
        keys, cells, mean_feature = state.memory
        H, size = self.config.hidden_size, self.att_lstm.num_tensors
        weight = self.att_lstm.cell.weight_ih
        known = F.linear(inputs, weight[:, 2 * H :])
        known = known + packed.pack_images(F.linear(mean_feature, weight[:, H : 2 * H]))
        att_lstm = UnrolledCell(self.att_lstm, slice(H), known, packed.sizes)
        lang_lstm = UnrolledCell(self.lang_lstm, slice(2 * H), None, packed.sizes)
        hidden, outputs, weights = state.hidden, [], []
        for step in packed.steps:
            hidden = step.keep(hidden)
            att, lang = hidden[:size], hidden[size:]
            att = att_lstm([lang[0]], att)
            context, weight = self.attn(att[0], keys, cells, step.per_image)
            lang = lang_lstm([context, att[0]], lang)
            hidden = (*att, *lang)
            outputs.append(lang[0])
            weights.append(weight)
        return torch.cat(outputs), torch.cat(weights)
