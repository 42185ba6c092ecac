"""Decoders whose LSTM (or GRU) runs over the whole caption in one call.

Show and Tell (Vinyals et al., CVPR 2015) feeds the image vector first, then the tokens. Spatial and
adaptive attention (Lu et al., "Knowing When to Look", CVPR 2017) do the same, and then each hidden
state attends to the grid. The context is not fed back into the LSTM, so training attends for all
tokens at once; `input_feeding` has the decoders that feed it back.

Shapes as in `pipeline.decoders.decoder`.
"""

import torch
from torch import Tensor, nn

from pipeline.captions.vocabulary import PAD
from pipeline.decoders.attention import GridEmbedding, MultiHeadAttention
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState, expand_to_captions


class RecurrentDecoder(Decoder):
    """The image vector and the tokens through one LSTM (or GRU)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.image_proj = nn.Linear(config.feature_shape[-1], config.embed_size)
        rnn = nn.LSTM if config.rnn_type == "lstm" else nn.GRU
        self.rnn = rnn(
            config.embed_size,
            config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        init_forget_bias(self.rnn)

    def _run_rnn(self, vectors: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's inputs (B, 1 + T, E) and outputs (B, 1 + T, H); the first step is that of the
        images' standardised vectors (P, D)."""
        image = expand_to_captions(self.image_proj(vectors), token_ids).unsqueeze(1)  # (B, 1, E)
        inputs = self.dropout(torch.cat([image, self.embed(token_ids)], dim=1))
        if token_ids.device.type != "cpu":
            return inputs, self._run_rnn_on_gpu(inputs)
        return inputs, self._run_rnn_ragged(inputs, 1 + (token_ids != PAD).sum(dim=1))

    def _run_rnn_on_gpu(self, inputs: Tensor) -> Tensor:
        """The LSTM's outputs (B, 1 + T, H) in autocast's dtype. Autocast itself would run it in
        float16 whatever its dtype, which lacks bfloat16's range and was no faster."""
        if not torch.is_autocast_enabled("cuda"):
            return self.rnn(inputs)[0]
        dtype, rnn = torch.get_autocast_dtype("cuda"), self.rnn
        with torch.autocast("cuda", enabled=False):
            # One block of memory, matrices before biases, as cuDNN wants it.
            weights = [weight for layer in rnn.all_weights for weight in layer]
            order = sorted(range(len(weights)), key=lambda i: -weights[i].dim())
            block = torch.cat([weights[i].flatten() for i in order]).to(dtype)
            parts = block.split([weights[i].numel() for i in order])
            by_index = dict(zip(order, parts, strict=True))
            cast = [by_index[i].view_as(weight) for i, weight in enumerate(weights)]
            settings = (True, rnn.num_layers, rnn.dropout, self.training, False, True)
            inputs = inputs.to(dtype)
            zeros = inputs.new_zeros(rnn.num_layers, len(inputs), rnn.hidden_size)
            if isinstance(rnn, nn.LSTM):
                return torch.lstm(inputs, (zeros, zeros), cast, *settings)[0]
            return torch.gru(inputs, zeros, cast, *settings)[0]

    def _run_rnn_ragged(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The LSTM's outputs (B, S, H) for S = 1 + T steps, zeros for most of what lies past a
        caption's length (B,).

        A CPU computes every step it is given, also those on <pad>. So the batch runs whole up to
        one step, and from there only the captions that are longer. That step is the one that
        leaves the fewest rows to compute. `pack_padded_sequence` would split at every length, and
        its many small calls were slower.
        """
        B, S = inputs.shape[:2]
        alive = (lengths.unsqueeze(1) > torch.arange(S)).sum(dim=0)  # (S,), captions at each step
        cost = [B * step + int(alive[step]) * (S - step) for step in range(1, S)]
        if not cost or min(cost) > 0.95 * B * S:
            return self.rnn(inputs)[0]
        split_step = 1 + min(range(S - 1), key=cost.__getitem__)
        longer = (lengths > split_step).nonzero().squeeze(1)
        first, state = self._call_rnn(inputs[:, :split_step])
        state = tuple(part.index_select(1, longer) for part in state)
        rest, _ = self._call_rnn(inputs[longer, split_step:], state)
        padded = rest.new_zeros(B, S - split_step, rest.shape[-1]).index_copy(0, longer, rest)
        return torch.cat([first, padded], dim=1)

    def _call_rnn(
        self, inputs: Tensor, hidden: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs, and the state as a tuple of (L, B, H), which a GRU's is not by itself."""
        if isinstance(self.rnn, nn.LSTM):
            return self.rnn(inputs, hidden)
        outputs, state = self.rnn(inputs, None if hidden is None else hidden[0])
        return outputs, (state,)

    def _init_from_image(self, vectors: Tensor, memory: tuple[Tensor, ...]) -> DecoderState:
        """The state after the image's step."""
        _, hidden = self._call_rnn(self.dropout(self.image_proj(vectors).unsqueeze(1)))
        return DecoderState(memory, _batch_first(hidden))

    def _step_rnn(
        self, token_ids: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """The LSTM's input (B, 1, E) and output (B, 1, H) for `token_ids` (B,), and the state."""
        hidden = tuple(part.transpose(0, 1).contiguous() for part in state.hidden)  # (L, B, H)
        inputs = self.dropout(self.embed(token_ids).unsqueeze(1))
        output, hidden = self._call_rnn(inputs, hidden)
        return inputs, output, DecoderState(state.memory, _batch_first(hidden))


@torch.no_grad()
def init_forget_bias(rnn: nn.Module) -> None:
    """Give an LSTM (or its cell) a forget bias of one (Jozefowicz et al., ICML 2015)."""
    if isinstance(rnn, (nn.LSTM, nn.LSTMCell)):
        H = rnn.hidden_size
        for name, bias in rnn.named_parameters():
            if name.startswith("bias"):  # the two of a layer are added
                bias[H : 2 * H] = 1.0 if name.startswith("bias_ih") else 0.0


def _batch_first(hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.transpose(0, 1) for part in hidden)  # (B, L, H)


class ShowAndTell(RecurrentDecoder):
    """Captions from one vector per image."""

    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, None]:
        return self._run_rnn(self.normalize_features(features), token_ids)[1][:, 1:], None

    def init_state(self, features: Tensor) -> DecoderState:
        return self._init_from_image(self.normalize_features(features), ())

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        _, output, state = self._step_rnn(token_ids, state)
        return self.logits(output.squeeze(1)), state


class SpatialAttention(RecurrentDecoder):
    """Every hidden state attends to the grid, with several heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        H = config.hidden_size
        self.grid_embed = GridEmbedding(config)
        self.attn = MultiHeadAttention(H, config.num_heads)
        self.out_proj = nn.Linear(2 * H, H)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(torch.tanh(self.out_proj(hidden)))

    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.normalize_features(features)
        inputs, outputs = self._run_rnn(grid.mean(dim=1), token_ids)
        return self._attend(inputs[:, 1:], outputs[:, :-1], outputs[:, 1:], self._memory(grid))

    def init_state(self, features: Tensor) -> DecoderState:
        grid = self.normalize_features(features)
        return self._init_from_image(grid.mean(dim=1), self._memory(grid))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        prev_hidden = state.hidden[0][:, -1:]  # the last layer's, (B, 1, H)
        inputs, output, state = self._step_rnn(token_ids, state)
        hidden, _ = self._attend(inputs, prev_hidden, output, state.memory)
        return self.logits(hidden.squeeze(1)), state

    def _memory(self, grid: Tensor) -> tuple[Tensor, ...]:
        return self.attn.project_kv(self.dropout(self.grid_embed(grid)))

    def _attend(
        self, inputs: Tensor, prev_hidden: Tensor, outputs: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The LSTM's outputs and the context, (B, T, 2 H), and the attention weights, from its
        inputs (B, T, E), its outputs one step before, and its outputs, (B, T, H) each."""
        query, sentinel = self.dropout(outputs), self._sentinel(inputs, prev_hidden, outputs)
        context, weights = self.attn(query, *memory, sentinel)
        return torch.cat([outputs, context], dim=-1), weights

    def _sentinel(self, inputs: Tensor, prev_hidden: Tensor, outputs: Tensor) -> Tensor | None:
        return None


class AdaptiveAttention(SpatialAttention):
    """Spatial attention that can attend to a sentinel, its own state, instead of the grid.

    Lu et al. gate the LSTM's cell state, of which fused kernels return only the last; here the gate
    is on the hidden state, which is that cell state through another gate.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.embed_size + config.hidden_size, config.hidden_size)

    def _sentinel(self, inputs: Tensor, prev_hidden: Tensor, outputs: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([inputs, prev_hidden], dim=-1)))
        return gate * outputs
