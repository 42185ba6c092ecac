"""A small transformer decoder (Vaswani et al., NeurIPS 2017; layer norm first, as Xiong et al.,
ICML 2020): the yardstick that an LSTM must answer to.

Shapes as in `pipeline.decoders.decoder`.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoders.attention import Cells, MultiHeadAttention
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState


class Block(nn.Module):
    """Words look at the words before them, then at the grid, then think."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.heads = config.num_heads
        self.before_words, self.before_grid, self.before_thought = (
            nn.LayerNorm(H) for _ in range(3)
        )
        self.qkv, self.out = nn.Linear(H, 3 * H), nn.Linear(H, H)
        self.attend, self.mix = MultiHeadAttention(H, config.num_heads), nn.Linear(H, H)
        self.widen, self.narrow = nn.Linear(H, 4 * H), nn.Linear(4 * H, H)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """
        Args:
            hidden: (B, T, H).
            past: keys and values (B, t, H) of the words before, for a step of one word; None for
                a caption as a whole.
            memory: the grid, as `attend` remembers it.

        Returns:
            (B, T, H), the weights (B, T, N), and the keys and values of all words so far.
        """
        query, key, value = self.qkv(self.before_words(hidden)).chunk(3, dim=-1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        query, keys, values = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (query, key, value)
        )  # (B, heads, T, H / heads)
        said = F.scaled_dot_product_attention(query, keys, values, is_causal=past is None)
        hidden = hidden + self.dropout(self.out(said.transpose(1, 2).flatten(2)))
        seen, weights = self.attend(self.before_grid(hidden), *memory)
        hidden = hidden + self.dropout(self.mix(seen))
        thought = F.gelu(self.widen(self.before_thought(hidden)))
        return hidden + self.dropout(self.narrow(thought)), weights, (key, value)


class TransformerDecoder(Decoder):
    """Attention only."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        *grid, D = config.feature_shape
        H = config.hidden_size
        self.cells = Cells(D, grid[0] * grid[1], H)
        self.enter = nn.Linear(config.embed_size, H)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.leave = nn.LayerNorm(H)

    def hidden(self, features: Tensor, words: Tensor) -> Tensor:
        return self._run_rnn(features, words)[0]

    def attention(self, features: Tensor, words: Tensor) -> Tensor:
        return self._run_rnn(features, words)[1]

    def _run_rnn(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._entered(words, begin=0)
        memory = self._memory(features)
        for number, block in enumerate(self.blocks):
            own = slice(2 * number, 2 * number + 2)
            hidden, weights, _ = block(hidden, None, memory[own])
        return self.leave(hidden), weights  # the last block's

    def start(self, features: Tensor) -> DecoderState:
        memory = self._memory(features)
        nothing = memory[0].new_zeros(len(features), 0, self.config.hidden_size)
        return DecoderState(memory, (nothing,) * (2 * self.config.num_layers))

    def step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        hidden = self._entered(words.unsqueeze(1), begin=state.beams[0].shape[1])
        said: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            own = slice(2 * number, 2 * number + 2)
            hidden, _, past = block(hidden, state.beams[own], state.memory[own])
            said += past
        return self.logits(self.leave(hidden).squeeze(1)), DecoderState(state.memory, tuple(said))

    def _memory(self, features: Tensor) -> tuple[Tensor, ...]:
        cells = self.dropout(self.cells(self.normalize_features(features)))
        blocks = cast(list[Block], list(self.blocks))
        return tuple(part for block in blocks for part in block.attend.remember(cells))

    def _entered(self, words: Tensor, begin: int) -> Tensor:
        """Words (B, T) and their places from `begin` on -> (B, T, H)."""
        H = self.config.hidden_size
        place = torch.arange(begin, begin + words.shape[1], device=words.device).unsqueeze(1)
        rate = torch.exp(torch.arange(0, H, 2, device=words.device) * (-math.log(10_000.0) / H))
        angles = place * rate  # (T, H / 2)
        places = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :H]
        return self.dropout(self.enter(self.embed(words)) + places)
