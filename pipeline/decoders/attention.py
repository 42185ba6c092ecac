"""Attention over the cells of a grid."""

from typing import Any

import torch
from torch import Tensor, nn

PIECE = 1 << 18  # numbers: a megabyte


class MultiHeadAttention(nn.Module):
    """Scaled dot products (Vaswani et al., NeurIPS 2017) of all words with all cells at once.

    The cells' side is computed once an image, whatever the number of captions and words.
    """

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (hidden_size // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size) for _ in range(3))

    def remember(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(P, N, H) -> keys and values, (P, heads, N, H / heads) each, as every word needs them."""
        keys, values = self._split(self.key(cells)), self._split(self.value(cells))
        return keys.contiguous(), values.contiguous()

    def forward(
        self, asking: Tensor, keys: Tensor, values: Tensor, sentinel: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            asking: (B, T, H).
            keys, values: what `remember` gave.
            sentinel: (B, T, H), what each word may look at instead of the grid.

        Returns:
            What was seen, (B, T, H), the heads side by side for the caller to mix, and the weights
            (B, T, N), the mean over heads; with a sentinel its own weight, the last of
            (B, T, N + 1), too.
        """
        (B, T, H), (P, _, N, _) = asking.shape, keys.shape
        # An image's captions ask side by side: (P, heads, C * T, H / heads). In one piece: of a
        # slice a linear layer makes a product a caption, each with its own copy of the weights.
        query = self._split(self.query(asking.reshape(P, -1, H)))
        scores = query @ keys.transpose(-1, -2)  # (P, heads, C * T, N)
        if sentinel is not None:
            itself = self.key(sentinel).reshape(P, -1, H), self.value(sentinel).reshape(P, -1, H)
            own_key, own_value = map(self._split, itself)
            scores = torch.cat([scores, (query * own_key).sum(-1, keepdim=True)], dim=-1)
        weights = (scores * self.scale).softmax(dim=-1)
        seen = weights[..., :N] @ values  # (P, heads, C * T, H / heads)
        if sentinel is not None:
            seen = seen + weights[..., N:] * own_value
        return seen.transpose(1, 2).reshape(B, T, H), weights.mean(dim=1).view(B, T, -1)

    def _split(self, rows: Tensor) -> Tensor:
        """(P, n, H) -> (P, heads, n, H / heads)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AdditiveAttention(nn.Module):
    """A small network scores each cell (Bahdanau et al., ICLR 2015)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(hidden_size, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        # No bias: softmax leaves out what all cells share.
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, asking: Tensor, keys: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            asking: (B, H).
            keys: (P, N, H), `self.key` of the cells, made once.
            cells: (P, N, H).

        Returns:
            What was seen, (B, H), and the weights (B, N).
        """
        query = self.query(asking).unflatten(0, (len(cells), -1))  # (P, C, H)
        if asking.device.type == "cpu" and keys.dtype == query.dtype == torch.float32:
            scores = _Scores.apply(query, keys, self.score.weight)
        else:
            both = query.unsqueeze(2) + keys.unsqueeze(1)  # (P, C, N, H)
            scores = self.score(torch.tanh(both)).squeeze(-1)
        weights = scores.softmax(dim=-1)
        return (weights @ cells).flatten(0, 1), weights.flatten(0, 1)


class _Scores(torch.autograd.Function):
    """tanh(query + key) . weight for each cell, some images at a time.

    For a whole batch the sums alone are tens of megabytes, and memory is what a CPU waits for. In
    pieces they stay in its cache, and the gradient makes them again rather than read them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        """(P, C, H), (P, N, H) and (1, H) -> (P, C, N)."""
        ctx.save_for_backward(query, keys, weight)
        scores = query.new_empty(*query.shape[:2], keys.shape[1])
        for piece in _pieces(query, keys):
            torch.matmul(_mixed(query, keys, piece), weight[0], out=scores[piece])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, weight = ctx.saved_tensors
        (of_scores,) = gradients  # (P, C, N)
        of_query, of_keys = torch.empty_like(query), torch.empty_like(keys)
        of_weight = torch.zeros_like(weight)
        for piece in _pieces(query, keys):
            mixed, given = _mixed(query, keys, piece), of_scores[piece].contiguous()
            of_weight[0] += given.flatten() @ mixed.flatten(0, 2)
            inner = mixed.square_().neg_().add_(1).mul_(weight[0]).mul_(given.unsqueeze(-1))
            torch.sum(inner, dim=2, out=of_query[piece])
            torch.sum(inner, dim=1, out=of_keys[piece])
        return of_query, of_keys, of_weight


def _mixed(query: Tensor, keys: Tensor, piece: slice) -> Tensor:
    return (query[piece].unsqueeze(2) + keys[piece].unsqueeze(1)).tanh_()  # (p, C, N, H)


def _pieces(query: Tensor, keys: Tensor) -> list[slice]:
    """Of the images, so many at a time that their sums stay in a core's cache."""
    of_one = query.shape[1] * keys.shape[1] * keys.shape[2]
    size = max(1, PIECE // of_one)
    return [slice(begin, begin + size) for begin in range(0, len(query), size)]


class Cells(nn.Module):
    """A grid as a decoder's memory: each cell seen through one layer, and told where it is."""

    def __init__(self, feature_size: int, cells: int, hidden_size: int) -> None:
        super().__init__()
        self.seen = nn.Linear(feature_size, hidden_size)
        self.place = nn.Parameter(torch.randn(cells, hidden_size) * 0.02)

    def forward(self, grid: Tensor) -> Tensor:
        """Standardised (P, N, D) -> (P, N, H)."""
        return torch.relu(self.seen(grid)) + self.place
