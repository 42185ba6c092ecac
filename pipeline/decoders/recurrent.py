"""Decoders whose LSTM (or GRU) runs over the whole caption in one call.

Show and Tell (Vinyals et al., CVPR 2015) sees the image's vector first, then the words. Spatial
and adaptive attention (Lu et al., "Knowing When to Look", CVPR 2017) do the same, and then each
word's hidden state asks the grid. What was seen is not fed back into the LSTM, so training attends
for all words at once; Show, Attend and Tell, which feeds it back, must go word by word.

Shapes as in `pipeline.decoders.decoder`.
"""

import torch
from torch import Tensor, nn

from pipeline.captions.vocabulary import PAD
from pipeline.decoders.attention import Cells, MultiHeadAttention
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState, expand_to_captions


class ShowAndTell(Decoder):
    """Captions from one vector an image."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.image = nn.Linear(config.feature_shape[-1], config.embed_size)
        rnn = nn.LSTM if config.rnn_type == "lstm" else nn.GRU
        self.rnn = rnn(
            config.embed_size,
            config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        if config.rnn_type == "lstm":
            self._init_forget_bias()

    def _init_forget_bias(self) -> None:
        """Remember by default: a forget bias of one (Jozefowicz et al., ICML 2015)."""
        H = self.config.hidden_size
        for layer in range(self.config.num_layers):
            with torch.no_grad():
                getattr(self.rnn, f"bias_ih_l{layer}")[H : 2 * H].fill_(1.0)
                getattr(self.rnn, f"bias_hh_l{layer}")[H : 2 * H].zero_()

    def hidden(self, features: Tensor, words: Tensor) -> Tensor:
        return self._run_rnn(self.normalize_features(features), words)[1][:, 1:]

    def _run_rnn(self, vectors: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's inputs (B, 1 + T, E) and outputs (B, 1 + T, H); the image's own step, the
        first, predicts nothing.

        Args:
            vectors: standardised, (P, D).
        """
        image = expand_to_captions(self.image(vectors), words).unsqueeze(1)  # (B, 1, E)
        inputs = self.dropout(torch.cat([image, self.embed(words)], dim=1))
        if words.device.type != "cpu":
            return inputs, self._on_gpu(inputs)
        return inputs, self._run_rnn_ragged(inputs, 1 + (words != PAD).sum(dim=1))

    def _on_gpu(self, inputs: Tensor) -> Tensor:
        """The LSTM's outputs (B, T, H), in autocast's dtype. Autocast itself would run it in
        float16 whatever its dtype, which lacks bfloat16's range and was no faster."""
        if not torch.is_autocast_enabled("cuda"):
            return self.rnn(inputs)[0]
        dtype, rnn = torch.get_autocast_dtype("cuda"), self.rnn
        with torch.autocast("cuda", enabled=False):
            # One piece of memory, matrices before biases, as cuDNN wants it.
            weights = [part for layer in rnn.all_weights for part in layer]
            order = sorted(range(len(weights)), key=lambda place: -weights[place].dim())
            whole = torch.cat([weights[place].flatten() for place in order]).to(dtype)
            parts = dict(
                zip(order, whole.split([weights[place].numel() for place in order]), strict=True)
            )
            cast = [parts[place].view_as(weight) for place, weight in enumerate(weights)]
            settings = (True, rnn.num_layers, rnn.dropout, self.training, False, True)
            inputs = inputs.to(dtype)
            zeros = inputs.new_zeros(rnn.num_layers, len(inputs), rnn.hidden_size)
            if isinstance(rnn, nn.LSTM):
                return torch.lstm(inputs, (zeros, zeros), cast, *settings)[0]
            return torch.gru(inputs, zeros, cast, *settings)[0]

    def _run_rnn_ragged(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The LSTM's outputs (B, T, H), zeros for most of what is past a caption's length (B,).

        A CPU computes every step that it is asked for. So where captions of several lengths share
        a batch, the short ones leave it at the step at which that saves the most.
        """
        B, T = inputs.shape[:2]
        alive = (lengths.unsqueeze(1) > torch.arange(T)).sum(dim=0)  # (T,): captions at each step
        cost = [B * cut + int(alive[cut]) * (T - cut) for cut in range(1, T)]
        cut = 1 + min(range(T - 1), key=cost.__getitem__) if cost else T
        if not cost or min(cost) > 0.95 * B * T:
            return self.rnn(inputs)[0]
        longer = (lengths > cut).nonzero().squeeze(1)
        first, state = self.rnn(inputs[:, :cut])
        parts = state if isinstance(state, tuple) else (state,)
        parts = tuple(part.index_select(1, longer) for part in parts)
        rest, _ = self.rnn(inputs[longer, cut:], parts if len(parts) > 1 else parts[0])
        padded = rest.new_zeros(B, T - cut, rest.shape[-1]).index_copy(0, longer, rest)
        return torch.cat([first, padded], dim=1)

    def start(self, features: Tensor) -> DecoderState:
        return self._init_from_image(self.normalize_features(features), ())

    def _init_from_image(self, vectors: Tensor, memory: tuple[Tensor, ...]) -> DecoderState:
        _, state = self.rnn(self.dropout(self.image(vectors).unsqueeze(1)))
        return DecoderState(memory, self._batch_first(state))

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        _, output, state = self._next(words, state)
        return self.logits(output.squeeze(1)), state

    def _next(self, words: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """The LSTM's input (B, 1, E) and output (B, 1, H) for `words` (B,)."""
        layers_first = tuple(part.transpose(0, 1).contiguous() for part in state.beams)  # (L, B, H)
        before = layers_first if self.config.rnn_type == "lstm" else layers_first[0]
        inputs = self.dropout(self.embed(words).unsqueeze(1))
        output, after = self.rnn(inputs, before)
        return inputs, output, DecoderState(state.memory, self._batch_first(after))

    def _batch_first(self, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = state if isinstance(state, tuple) else (state,)
        return tuple(part.transpose(0, 1) for part in parts)  # (B, L, H)


class SpatialAttention(ShowAndTell):
    """Every word asks the grid, with several heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        *grid, D = config.feature_shape
        H = config.hidden_size
        self.cells = Cells(D, grid[0] * grid[1], H)
        self.attend = MultiHeadAttention(H, config.num_heads)
        self.fuse = nn.Linear(2 * H, H)

    def hidden(self, features: Tensor, words: Tensor) -> Tensor:
        return self._attended(features, words)[0]  # (B, T, 2 H), to be fused where needed

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(torch.tanh(self.fuse(hidden)))

    def attention(self, features: Tensor, words: Tensor) -> Tensor:
        return self._attended(features, words)[1]

    def _attended(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.normalize_features(features)
        inputs, outputs = self._run_rnn(grid.mean(dim=1), words)
        return self._ask(inputs[:, 1:], outputs[:, :-1], outputs[:, 1:], self._memory(grid))

    def start(self, features: Tensor) -> DecoderState:
        grid = self.normalize_features(features)
        return self._init_from_image(grid.mean(dim=1), self._memory(grid))

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        before = state.beams[0][:, -1:]  # the last layer's (B, 1, H)
        inputs, output, state = self._next(words, state)
        both, _ = self._ask(inputs, before, output, state.memory)
        return self.logits(both.squeeze(1)), state

    def _memory(self, grid: Tensor) -> tuple[Tensor, ...]:
        return self.attend.remember(self.dropout(self.cells(grid)))

    def _ask(
        self, inputs: Tensor, before: Tensor, outputs: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """What the LSTM knows and what was seen, (B, T, 2 H), and the weights.

        Args:
            inputs: (B, T, E), the LSTM's.
            before: (B, T, H), its outputs for the words before.
            outputs: (B, T, H), its outputs for these words.
        """
        seen, weights = self.attend(
            self.dropout(outputs), *memory, self._sentinel(inputs, before, outputs)
        )
        return torch.cat([outputs, seen], dim=-1), weights

    def _sentinel(self, inputs: Tensor, before: Tensor, outputs: Tensor) -> Tensor | None:
        return None


class AdaptiveAttention(SpatialAttention):
    """A word may look at a sentinel, what the decoder knows by itself, instead of the grid.

    Lu et al. gate the LSTM's memory cell, of which fused kernels give the last only; here the gate
    opens on the hidden state, which is that cell through another gate.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.embed_size + config.hidden_size, config.hidden_size)

    def _sentinel(self, inputs: Tensor, before: Tensor, outputs: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([inputs, before], dim=-1)))
        return gate * outputs
