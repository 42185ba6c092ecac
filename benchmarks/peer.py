"""Top-down attention as the best-known training code has it (Anderson et al., CVPR 2018, in the
structure of ruotianluo/self-critical.pytorch): each caption and each beam with a copy of the grid,
word by word; and a batched beam search over it. A reference for speed, not for style."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config.schema import TrainConfig

DecoderState = tuple[Tensor, Tensor, Tensor, Tensor]


class PeerTopDown(nn.Module):
    """B rows (captions or beams), N cells, D feature size, E and H as the params say."""

    def __init__(self, features: int, words: int, config: TrainConfig) -> None:
        super().__init__()
        E, H = config.embed_size, config.hidden_size
        self.words, self.hidden_size = words, H
        self.embed = nn.Sequential(nn.Embedding(words, E), nn.ReLU(), nn.Dropout(config.dropout))
        self.fc = nn.Sequential(nn.Linear(features, H), nn.ReLU(), nn.Dropout(config.dropout))
        self.att = nn.Sequential(nn.Linear(features, H), nn.ReLU(), nn.Dropout(config.dropout))
        self.key, self.query, self.score = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, 1)
        self.look, self.tell = nn.LSTMCell(E + 2 * H, H), nn.LSTMCell(2 * H, H)
        self.output = nn.Linear(H, words)
        self.dropout = config.dropout

    def remember(self, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> the mean (B, H), the cells and their keys (B, N, H)."""
        cells = self.att(grid)
        return self.fc(grid.mean(dim=1)), cells, self.key(cells)

    def begin(self, rows: int) -> DecoderState:
        zeros = self.output.weight.new_zeros(rows, self.hidden_size)
        return zeros, zeros, zeros, zeros

    def step(
        self, words: Tensor, memory: tuple[Tensor, ...], state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """Logits (B, V) and the state after `words` (B,)."""
        mean, cells, keys = memory
        look_h, look_c, tell_h, tell_c = state
        inputs = torch.cat([tell_h, mean, self.embed(words)], dim=1)
        look_h, look_c = self.look(inputs, (look_h, look_c))
        asked = self.query(look_h).unsqueeze(1).expand_as(keys)
        shares = self.score(torch.tanh(keys + asked)).squeeze(2).softmax(dim=1)
        seen = torch.bmm(shares.unsqueeze(1), cells).squeeze(1)
        tell_h, tell_c = self.tell(torch.cat([seen, look_h], dim=1), (tell_h, tell_c))
        said = F.dropout(tell_h, self.dropout, self.training)
        return self.output(said), (look_h, look_c, tell_h, tell_c)

    def forward(self, grid: Tensor, words: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and targets of every word, (tokens, V) and (tokens,).

        Args:
            grid: (B, height, width, D), a copy for each caption.
            words: (B, L), <pad> after each caption.
        """
        memory, state = self.remember(grid.flatten(1, 2)), self.begin(len(words))
        logits = []
        for place in range(max(lengths) - 1):
            said, state = self.step(words[:, place], memory, state)
            logits.append(F.log_softmax(said, dim=1))
        kept = torch.arange(max(lengths) - 1) < torch.tensor(lengths).unsqueeze(1) - 1
        made = torch.stack(logits, dim=1)
        kept = kept.to(made.device)
        return made[kept], words[:, 1 : max(lengths)][kept]

    @torch.no_grad()
    def search(self, grid: Tensor, beam: int, length: int, start: int, end: int) -> Tensor:
        """The best of `beam` captions (B, length) of each image, by a batched beam search."""
        B = len(grid)
        memory = tuple(
            part.repeat_interleave(beam, dim=0) for part in self.remember(grid.flatten(1, 2))
        )
        state, words = self.begin(B * beam), torch.full((B * beam,), start, device=grid.device)
        sums = torch.zeros(B, beam, device=grid.device)
        sums[:, 1:] = float("-inf")
        said = words.new_zeros(B, beam, 0)
        best, found = sums.new_full((B,), float("-inf")), words.new_zeros(B, length)
        for place in range(length):
            logits, state = self.step(words, memory, state)
            scores = F.log_softmax(logits, dim=1).view(B, beam, -1) + sums.unsqueeze(-1)
            sums, chosen = scores.flatten(1).sort(dim=1, descending=True)
            sums, chosen = sums[:, :beam], chosen[:, :beam]
            parents, last = chosen // self.words, chosen % self.words
            said = said.gather(1, parents.unsqueeze(-1).expand(-1, -1, said.shape[-1]))
            said = torch.cat([said, last.unsqueeze(-1)], dim=-1)
            rows = (torch.arange(B, device=grid.device).unsqueeze(1) * beam + parents).flatten()
            look_h, look_c, tell_h, tell_c = (part[rows] for part in state)
            state, words = (look_h, look_c, tell_h, tell_c), last.flatten()
            for row in range(B):  # as finished captions are taken out, image by image
                for number in range(beam):
                    if last[row, number] == end or place == length - 1:
                        if sums[row, number] > best[row]:
                            best[row] = sums[row, number]
                            found[row, : place + 1] = said[row, number]
                        sums[row, number] -= 1000
        return found
