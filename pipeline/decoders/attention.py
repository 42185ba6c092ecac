"""Attention over the cells of a grid; shapes as in `pipeline.decoders.decoder`."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

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

    def project_keys(self, cells: Tensor) -> Tensor:
        """(P, N, H) -> the cells' keys (P, N, H), as `forward` takes them."""
        keys = self.key(cells)
        return _Exponentials.apply(keys) if _by_exponentials(keys) else keys

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        cells: Tensor,
        per_image: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            query: (B, H), before its projection.
            keys: (P, N, H), as `project_keys` returns them.
            cells: (P, N, H).
            per_image: how many of the queries each image has, on a CPU; None: equally many.

        Returns:
            The context (B, H) and the weights (B, N).
        """
        P, N, _ = cells.shape
        query = self.query(query)
        if _by_exponentials(keys):
            counts = [len(query) // P] * P if per_image is None else per_image
            scores = _AdditiveScores.apply(query, keys, self.score.weight, counts)  # (B, N)
        else:
            grouped = query.unflatten(0, (P, -1))  # (P, C, H)
            activations = torch.tanh(grouped.unsqueeze(2) + keys.unsqueeze(1))  # (P, C, N, H)
            scores = self.score(activations).squeeze(-1).flatten(0, 1)
        weights = scores.softmax(dim=-1)
        if per_image is None or len(set(per_image)) == 1:
            return (weights.view(P, -1, N) @ cells).flatten(0, 1), weights
        # Each image gets as many rows as the one with most queries.
        C = max(per_image)
        rows = torch.cat([torch.arange(p * C, p * C + count) for p, count in enumerate(per_image)])
        padded = weights.new_zeros(P * C, N).index_copy(0, rows, weights).view(P, C, N)
        return (padded @ cells).flatten(0, 1).index_select(0, rows), weights


def _by_exponentials(keys: Tensor) -> bool:
    """Whether scores are computed from exponentials: on a CPU, but not in a graph, which cannot
    hold the loop over chunks."""
    return keys.device.type == "cpu" and not torch.compiler.is_exporting()


def _exponentials(rows: Tensor) -> Tensor:
    """exp(2 x) in float32; clamped, so that no product of two is infinity times zero."""
    return rows.float().clamp(-40, 40).mul_(2).exp_()


class _Exponentials(torch.autograd.Function):
    """exp(2 key), whose gradient `_AdditiveScores` gives as that of the key itself."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor) -> Tensor:
        return _exponentials(keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _AdditiveScores(torch.autograd.Function):
    """weight . tanh(query + key) for each cell, less a constant, a few images at a time.

    tanh(x) = 1 - 2 sigmoid(-2 x), and sigmoid(-2 (q + k)) = 1 / (1 + exp(2 q) exp(2 k)). So queries
    and keys have their exponentials each, and no pair of them needs one. The constant is the sum
    of the weights, which softmax cancels.

    For a whole batch the activations are tens of megabytes, and a CPU waits for memory. In chunks
    they stay in its cache, and the backward pass recomputes them rather than read them.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, query: Tensor, exp_keys: Tensor, weight: Tensor, per_image: Sequence[int]
    ) -> Tensor:
        """(B, H), (P, N, H) and (1, H) -> (B, N)."""
        exp_query = _exponentials(query)
        ctx.save_for_backward(exp_query, exp_keys, weight)
        ctx.chunks = _chunks(per_image, exp_keys[0].numel())
        scores = query.new_empty(len(query), exp_keys.shape[1])
        for chunk in ctx.chunks:
            sigmoids = _sigmoids(exp_query, exp_keys, chunk)
            torch.matmul(sigmoids, -2 * weight[0], out=chunk.group(scores))
        return scores

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        exp_query, exp_keys, weight = ctx.saved_tensors
        grad_scores = gradients[0].contiguous()  # (B, N)
        grad_query, grad_keys = torch.empty_like(exp_query), torch.zeros_like(exp_keys)
        grad_weight = torch.zeros_like(weight)
        for chunk in ctx.chunks:
            sigmoids = _sigmoids(exp_query, exp_keys, chunk)
            grad = chunk.group(grad_scores)
            grad_weight[0] += grad.flatten() @ sigmoids.flatten(0, 2)
            # The derivative of tanh is 4 s (1 - s).
            inner = torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1)
            inner.mul_(4 * weight[0]).mul_(grad.unsqueeze(-1))
            torch.sum(inner, dim=2, out=chunk.group(grad_query))
            torch.sum(inner, dim=1, out=grad_keys[chunk.images])
        return grad_query, grad_keys, -2 * grad_weight, None


class _Chunk(NamedTuple):
    """Neighbouring images with equally many queries."""

    images: slice
    rows: slice  # of the queries

    def group(self, rows: Tensor) -> Tensor:
        """(B, ·) -> those of these images (p, c, ·)."""
        return rows[self.rows].unflatten(0, (self.images.stop - self.images.start, -1))


def _sigmoids(exp_query: Tensor, exp_keys: Tensor, chunk: _Chunk) -> Tensor:
    """sigmoid(-2 (q + k)) (p, c, N, H)."""
    products = chunk.group(exp_query).unsqueeze(2) * exp_keys[chunk.images].unsqueeze(1)
    return products.add_(1).reciprocal_()


def _chunks(per_image: Sequence[int], elements: int) -> list[_Chunk]:
    """Images whose activations, `elements` for each query, stay in a core's cache."""
    chunks, image, row = [], 0, 0
    for count, equal in groupby(per_image):
        left = sum(1 for _ in equal)
        size = max(1, CHUNK_ELEMENTS // (elements * max(1, count)))
        while left:
            images = min(size, left)
            rows = images * count
            if rows:
                chunks.append(_Chunk(slice(image, image + images), slice(row, row + rows)))
            image, row, left = image + images, row + rows, left - images
    return chunks


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
