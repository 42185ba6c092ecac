"""Attention over the cells of a grid."""

import torch
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Scaled dot products (Vaswani et al., NeurIPS 2017) of all words with all cells at once.

    The cells' side is computed once a picture, whatever the number of captions and words.
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
        # A picture's captions ask side by side: (P, heads, C * T, H / heads). In one piece: of a
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
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, asking: Tensor, keys: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            asking: (B, H).
            keys: (P, N, H), `self.key` of the cells, made once.
            cells: (P, N, H).

        Returns:
            What was seen, (B, H), and the weights (B, N).
        """
        query = self.query(asking).unflatten(0, (len(cells), -1)).unsqueeze(2)  # (P, C, 1, H)
        scores = self.score(torch.tanh(query + keys.unsqueeze(1))).squeeze(-1)  # (P, C, N)
        weights = scores.softmax(dim=-1)
        return (weights @ cells).flatten(0, 1), weights.flatten(0, 1)


class Cells(nn.Module):
    """A grid as a decoder's memory: each cell seen through one layer, and told where it is."""

    def __init__(self, feature_size: int, cells: int, hidden_size: int) -> None:
        super().__init__()
        self.seen = nn.Linear(feature_size, hidden_size)
        self.place = nn.Parameter(torch.randn(cells, hidden_size) * 0.02)

    def forward(self, grid: Tensor) -> Tensor:
        """Standardised (P, N, D) -> (P, N, H)."""
        return torch.relu(self.seen(grid)) + self.place
