"""Attention over the cells of a grid; shapes as in `pipeline.decoders.decoder`."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.decoders.decoder import DecoderConfig

CHUNK_ELEMENTS = 1 << 18  # of float32: one MiB


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al., NeurIPS 2017) of all tokens at once.

    Keys and values are computed once per image, whatever the number of captions and tokens.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (hidden_size // num_heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size) for _ in range(3))

    def project_kv(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(P, N, H) -> keys and values, (P, heads, N, H / heads) each."""
        keys, values = self._split(self.key(cells)), self._split(self.value(cells))
        return keys.contiguous(), values.contiguous()

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, sentinel: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            query: (B, T, H), before its projection.
            keys, values: as `project_kv` returns them.
            sentinel: (B, T, H), one more cell for each token to attend to.

        Returns:
            The context (B, T, H), heads side by side without an output projection, and the weights
            (B, T, N), their mean over heads; with a sentinel (B, T, N + 1), its weight last.
        """
        (B, T, H), (P, _, N, _) = query.shape, keys.shape
        # The queries of an image's captions side by side, (P, heads, C * T, H / heads), in one
        # piece: a linear layer over a slice would copy its weights for every caption.
        query = self._split(self.query(query.reshape(P, -1, H)))
        scores = query @ keys.transpose(-1, -2)  # (P, heads, C * T, N)
        if sentinel is not None:
            own_key = self._split(self.key(sentinel).reshape(P, -1, H))
            own_value = self._split(self.value(sentinel).reshape(P, -1, H))
            scores = torch.cat([scores, (query * own_key).sum(-1, keepdim=True)], dim=-1)
        weights = (scores * self.scale).softmax(dim=-1)
        context = weights[..., :N] @ values  # (P, heads, C * T, H / heads)
        if sentinel is not None:
            context = context + weights[..., N:] * own_value
        return context.transpose(1, 2).reshape(B, T, H), weights.mean(dim=1).view(B, T, -1)

    def _split(self, rows: Tensor) -> Tensor:
        """(P, n, H) -> (P, heads, n, H / heads)."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class AdditiveAttention(nn.Module):
    """A small network scores each cell (Bahdanau et al., ICLR 2015)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(hidden_size, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # softmax would cancel a bias

    def forward(self, query: Tensor, keys: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            query: (B, H), before its projection.
            keys: (P, N, H), `self.key` of the cells, computed once.
            cells: (P, N, H).

        Returns:
            The context (B, H) and the weights (B, N).
        """
        query = self.query(query).unflatten(0, (cells.shape[0], -1))  # (P, C, H)
        if _chunks_pay(query, keys):
            scores = _AdditiveScores.apply(query, keys, self.score.weight)
        else:
            activations = torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1))  # (P, C, N, H)
            scores = self.score(activations).squeeze(-1)
        weights = scores.softmax(dim=-1)
        return (weights @ cells).flatten(0, 1), weights.flatten(0, 1)


def _chunks_pay(query: Tensor, keys: Tensor) -> bool:
    on_cpu = query.device.type == "cpu" and keys.dtype == query.dtype == torch.float32
    return on_cpu and not torch.compiler.is_exporting()  # a graph cannot hold the loop


class _AdditiveScores(torch.autograd.Function):
    """tanh(query + key) . weight for each cell, a few images at a time.

    For a whole batch the activations are tens of megabytes, and a CPU waits for memory. In chunks
    they stay in its cache, and the backward pass recomputes them rather than read them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        """(P, C, H), (P, N, H) and (1, H) -> (P, C, N)."""
        ctx.save_for_backward(query, keys, weight)
        scores = query.new_empty(*query.shape[:2], keys.shape[1])
        for chunk in _chunks(query, keys):
            torch.matmul(_activations(query, keys, chunk), weight[0], out=scores[chunk])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, weight = ctx.saved_tensors
        (grad_scores,) = gradients  # (P, C, N)
        grad_query, grad_keys = torch.empty_like(query), torch.empty_like(keys)
        grad_weight = torch.zeros_like(weight)
        for chunk in _chunks(query, keys):
            activations = _activations(query, keys, chunk)
            grad = grad_scores[chunk].contiguous()
            grad_weight[0] += grad.flatten() @ activations.flatten(0, 2)
            inner = activations.square_().neg_().add_(1).mul_(weight[0]).mul_(grad.unsqueeze(-1))
            torch.sum(inner, dim=2, out=grad_query[chunk])
            torch.sum(inner, dim=1, out=grad_keys[chunk])
        return grad_query, grad_keys, grad_weight


def _activations(query: Tensor, keys: Tensor, chunk: slice) -> Tensor:
    return (query[chunk].unsqueeze(2) + keys[chunk].unsqueeze(1)).tanh_()  # (p, C, N, H)


def _chunks(query: Tensor, keys: Tensor) -> list[slice]:
    """Slices of the images whose activations stay in a core's cache."""
    per_image = query.shape[1] * keys.shape[1] * keys.shape[2]
    size = max(1, CHUNK_ELEMENTS // per_image)
    return [slice(begin, begin + size) for begin in range(0, len(query), size)]


class GridEmbedding(nn.Module):
    """The grid as a decoder's memory: a projection of each cell plus a learned position."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        height, width, D = config.feature_shape
        self.proj = nn.Linear(D, config.hidden_size)
        self.pos_embed = nn.Parameter(torch.randn(height * width, config.hidden_size) * 0.02)

    def forward(self, grid: Tensor) -> Tensor:
        """Standardised features (P, N, D) -> (P, N, H)."""
        return torch.relu(self.proj(grid)) + self.pos_embed
