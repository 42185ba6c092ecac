"""A small transformer decoder, a baseline for the recurrent decoders.

Vaswani et al., NeurIPS 2017; layer norm first, as Xiong et al., ICML 2020. Shapes as in
`pipeline.decoders.decoder`.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoders.attention import GridEmbedding, MultiHeadAttention
from pipeline.decoders.decoder import Decoder, DecoderConfig, DecoderState
from pipeline.decoders.dropout import SharedDropout


class Block(nn.Module):
    """Pre-norm block: causal self-attention, cross-attention to the grid, MLP."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(H) for _ in range(3))
        self.qkv, self.proj = nn.Linear(H, 3 * H), nn.Linear(H, H)
        self.cross_attn, self.cross_proj = MultiHeadAttention(H, config.num_heads), nn.Linear(H, H)
        self.fc1, self.fc2 = nn.Linear(H, 4 * H), nn.Linear(4 * H, H)
        self.dropout = SharedDropout(config.dropout)

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """
        Args:
            hidden: (B, T, H).
            past: keys and values (B, t, H) of the tokens before, for a step of one token; None
                for a whole caption.
            memory: keys and values of the grid.

        Returns:
            (B, T, H), the attention weights (B, T, N), and the keys and values of all tokens so
            far.
        """
        query, key, value = self.qkv(self.norm1(hidden)).chunk(3, dim=-1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        query, keys, values = (
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in (query, key, value)
        )  # (B, heads, T, H / heads)
        self_attn = F.scaled_dot_product_attention(query, keys, values, is_causal=past is None)
        hidden = hidden + self.dropout(self.proj(self_attn.transpose(1, 2).flatten(2)))
        context, weights = self.cross_attn(self.norm2(hidden), *memory)
        hidden = hidden + self.dropout(self.cross_proj(context))
        mlp = self.fc2(F.gelu(self.fc1(self.norm3(hidden))))
        return hidden + self.dropout(mlp), weights, (key, value)


class TransformerDecoder(Decoder):
    """Blocks of attention; the state has two tensors per block, its keys and values so far."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        H = config.hidden_size
        self.grid_embed = GridEmbedding(config)
        self.embed_proj = nn.Linear(config.embed_size, H)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(H)

    def forward_hidden(self, features: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's output and attention weights."""
        hidden = self._embed(token_ids, start=0)
        memory = self._memory(features)
        for i, block in enumerate(self.blocks):
            hidden, weights, _ = block(hidden, None, memory[2 * i : 2 * i + 2])
        return self.norm(hidden), weights

    def init_state(self, features: Tensor) -> DecoderState:
        memory = self._memory(features)
        empty = memory[0].new_zeros(features.shape[0], 0, self.config.hidden_size)
        return DecoderState(memory, (empty,) * (2 * self.config.num_layers))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        hidden = self._embed(token_ids.unsqueeze(1), start=state.hidden[0].shape[1])
        keys_values: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            own = slice(2 * i, 2 * i + 2)
            hidden, _, past = block(hidden, state.hidden[own], state.memory[own])
            keys_values += past
        logits = self.logits(self.norm(hidden).squeeze(1))
        return logits, DecoderState(state.memory, tuple(keys_values))

    def _memory(self, features: Tensor) -> tuple[Tensor, ...]:
        """Two tensors per block: the grid's keys and values."""
        cells = self.dropout(self.grid_embed(self.normalize_features(features)))
        blocks = cast(list[Block], list(self.blocks))
        return tuple(part for block in blocks for part in block.cross_attn.project_kv(cells))

    def _embed(self, token_ids: Tensor, start: int) -> Tensor:
        """Token ids (B, T) at positions from `start` on -> (B, T, H), with sinusoidal positions."""
        H, device = self.config.hidden_size, token_ids.device
        positions = torch.arange(start, start + token_ids.shape[1], device=device).unsqueeze(1)
        rate = torch.exp(torch.arange(0, H, 2, device=device) * (-math.log(10_000.0) / H))
        angles = positions * rate  # (T, H / 2)
        pos_embed = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :H]
        return self.dropout(self.embed_proj(self.embed(token_ids)) + pos_embed)
