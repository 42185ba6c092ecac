"""Training of the pooled decoder: tokens a second, beside a bare loop and the usual tutorial's."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Row, gemm_flops, interleaved
from pipeline.config.train import TrainConfig
from pipeline.model.batches import EncodedCaptions, batches, encode
from pipeline.model.decoder import ShowAndTell
from pipeline.store.vocabulary import SPECIAL, Vocabulary
from pipeline.train import Data, caption_loss, decoder_config, train_epoch

PICTURES = 1000
WORDS, FEATURES = 2541, 2048  # Flickr8k's vocabulary, ResNet-50's vector


def made_up_data(pictures: int, device: torch.device) -> Data:
    """Captions as long as Flickr8k's (mean 10.8 words, 95 of 100 under 19), of words that are as
    unevenly frequent, on random features: speed does not depend on what is said."""
    rng = random.Random(0)
    vocabulary = Vocabulary((*SPECIAL, *(f"w{n}" for n in range(WORDS - len(SPECIAL)))))
    names = vocabulary.words[len(SPECIAL) :]
    weights = [1 / (rank + 3) for rank in range(len(names))]
    references = [
        [rng.choices(names, weights, k=max(3, round(rng.gammavariate(8, 1.35)))) for _ in range(5)]
        for _ in range(pictures)
    ]
    torch.manual_seed(0)
    return Data(
        torch.rand(pictures, FEATURES, device=device), references, encode(references, vocabulary)
    )


class _SingleItems(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: Data) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.captions)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        captions: EncodedCaptions = self._data.captions
        words = captions.words[i, : captions.lengths[i]]
        return self._data.features[captions.pictures[i]], words


class _TutorialDecoder(nn.Module):
    """Show and Tell as tutorials write it: the picture first, sequences packed."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.image = nn.Linear(FEATURES, config.embed_size)
        self.embed = nn.Embedding(WORDS, config.embed_size)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = nn.LSTM(config.embed_size, config.hidden_size, config.layers, batch_first=True)
        self.output = nn.Linear(config.hidden_size, WORDS)

    def forward(self, features: Tensor, words: Tensor, lengths: list[int]) -> Tensor:
        inputs = torch.cat([self.image(features).unsqueeze(1), self.embed(words[:, :-1])], dim=1)
        packed = pack_padded_sequence(self.dropout(inputs), lengths, batch_first=True)
        hidden, _ = self.rnn(packed)
        return self.output(self.dropout(hidden.data))


def _collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    items.sort(key=lambda item: -len(item[1]))
    words = pad_sequence([words for _, words in items], batch_first=True)
    return torch.stack([f for f, _ in items]), words, [len(words) for _, words in items]


def tutorial(data: Data, config: TrainConfig) -> Callable[[], int]:
    decoder = _TutorialDecoder(config).to(data.features.device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate)
    loader = DataLoader(
        _SingleItems(data), batch_size=config.batch_size, shuffle=True, collate_fn=_collate
    )

    def epoch() -> int:
        decoder.train()
        for features, words, lengths in loader:
            words = words.to(features.device)
            logits = decoder(features, words, lengths)
            targets = pack_padded_sequence(words, lengths, batch_first=True).data
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
            optimizer.step()
            loss.item()  # as tutorials do, for their log
        return int(data.captions.lengths.sum()) - len(data.captions)

    return epoch


def _start(
    data: Data, config: TrainConfig
) -> tuple[ShowAndTell, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    decoder = ShowAndTell(decoder_config(config, FEATURES, WORDS)).to(data.features.device)
    decoder.standardize_by(data.features)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, fused=True)
    return decoder, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def ours(data: Data, config: TrainConfig, precision: torch.dtype) -> Callable[[], int]:
    decoder, optimizer, schedule = _start(data, config)
    shuffle = torch.Generator().manual_seed(0)

    def epoch() -> int:
        train_epoch(decoder, data, optimizer, schedule, shuffle, config, precision, number=1)
        return int(data.captions.lengths.sum()) - len(data.captions)

    return epoch


def bare(data: Data, config: TrainConfig, precision: torch.dtype) -> Callable[[], int]:
    """Only the arithmetic: forward, backward and update on batches made beforehand."""
    decoder, optimizer, _ = _start(data, config)
    device = data.features.device
    ready = list(batches(data.captions, config.batch_size, device, torch.Generator()))

    def epoch() -> int:
        decoder.train()
        for batch in ready:
            loss = caption_loss(decoder, data.features, batch, config.label_smoothing, precision)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return sum(batch.tokens for batch in ready)

    return epoch


def flops_per_token(config: TrainConfig) -> float:
    """Of forward and backward, which costs twice the forward (the picture's own step left out)."""
    E, H = config.embed_size, config.hidden_size
    cell = sum(2 * 4 * H * ((E if layer == 0 else H) + H) for layer in range(config.layers))
    return 3 * (cell + 2 * H * WORDS)


def rows(
    config: TrainConfig, device: torch.device, precision: torch.dtype, repeats: int
) -> list[Row]:
    data = made_up_data(PICTURES, device)
    rates = interleaved(
        {
            "ours": ours(data, config, precision),
            "bare": bare(data, config, precision),
            "tutorial": tutorial(data, config),
        },
        repeats,
    )
    limit = gemm_flops(device, precision) / flops_per_token(config)
    what = "training, pooled"
    return [
        Row(what, rates["ours"], "tokens/s", "bare loop", rates["ours"] / rates["bare"], "0.90"),
        Row(what, rates["ours"], "tokens/s", "tutorial", rates["ours"] / rates["tutorial"], "2.5"),
        Row(what, rates["ours"], "tokens/s", "arithmetic limit", rates["ours"] / limit, "aim 0.75"),
    ]
