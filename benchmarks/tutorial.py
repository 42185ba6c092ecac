"""Decoders as tutorials write them: references for speed, not for style."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from pipeline.config.schema import TrainConfig


class PooledDecoder(nn.Module):
    """Show and Tell: the image first, sequences packed."""

    def __init__(self, features: int, words: int, config: TrainConfig) -> None:
        super().__init__()
        self.image = nn.Linear(features, config.embed_size)
        self.embed = nn.Embedding(words, config.embed_size)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = nn.LSTM(
            config.embed_size, config.hidden_size, config.num_layers, batch_first=True
        )
        self.output = nn.Linear(config.hidden_size, words)

    def forward(self, features: Tensor, words: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and targets of every word, (tokens, V) and (tokens,)."""
        inputs = torch.cat([self.image(features).unsqueeze(1), self.embed(words[:, 1:-1])], dim=1)
        said = [length - 1 for length in lengths]
        packed = pack_padded_sequence(self.dropout(inputs), said, batch_first=True)
        hidden, _ = self.rnn(packed)
        targets = pack_padded_sequence(words[:, 1:], said, batch_first=True).data
        return self.output(self.dropout(hidden.data)), targets


class AttentionDecoder(nn.Module):
    """Show, Attend and Tell: an `LSTMCell` step by step, each of a batch sorted by length, each
    caption with a grid of its own."""

    def __init__(self, features: int, words: int, config: TrainConfig) -> None:
        super().__init__()
        E, H = config.embed_size, config.hidden_size
        self.embed, self.dropout = nn.Embedding(words, E), nn.Dropout(config.dropout)
        self.of_cells, self.of_state = nn.Linear(features, H), nn.Linear(H, H)
        self.score = nn.Linear(H, 1)
        self.begin_h, self.begin_c = nn.Linear(features, H), nn.Linear(features, H)
        self.gate, self.cell = nn.Linear(H, features), nn.LSTMCell(E + features, H)
        self.output = nn.Linear(H, words)

    def forward(self, features: Tensor, words: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and targets of every word, (tokens, V) and (tokens,)."""
        cells = features.flatten(1, 2)  # (B, N, D)
        mean, embedded = cells.mean(dim=1), self.embed(words)
        h, c = self.begin_h(mean), self.begin_c(mean)
        logits, targets = [], []
        for step in range(max(lengths) - 1):
            alive = sum(length - 1 > step for length in lengths)
            h, c, own = h[:alive], c[:alive], cells[:alive]
            scores = self.score(torch.relu(self.of_cells(own) + self.of_state(h).unsqueeze(1)))
            seen = (own * scores.softmax(dim=1)).sum(dim=1)
            seen = torch.sigmoid(self.gate(h)) * seen
            h, c = self.cell(torch.cat([embedded[:alive, step], seen], dim=1), (h, c))
            logits.append(self.output(self.dropout(h)))
            targets.append(words[:alive, step + 1])
        return torch.cat(logits), torch.cat(targets)
