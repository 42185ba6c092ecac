"""Training: tokens a second, beside a bare loop and the loops of the usual tutorials."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from benchmarks.peer import PeerTopDown
from benchmarks.timing import Row, gemm_flops, interleaved
from benchmarks.tutorial import AttentionDecoder, PooledDecoder
from pipeline.captions.vocabulary import SPECIAL, Vocabulary
from pipeline.config.schema import TrainConfig
from pipeline.dataset.batching import EncodedCaptions, encode
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.extraction.feature_writer import create_features
from pipeline.features.recipe import FeatureRecipe, Preprocessing, View
from pipeline.training.trainer import Trainer, caption_loss, iter_split_batches

WORDS = 2541  # Flickr8k's vocabulary
VECTOR, GRID = (2048,), (7, 7, 1280)  # ResNet-50's vector, MobileNetV2's grid
IMAGES = {"pooled": 1000, "grid": 200}


def made_up_references(images: int) -> tuple[list[list[list[str]]], Vocabulary]:
    """Captions as long as Flickr8k's (mean 10.8 words, 95 of 100 under 19), of words that are as
    unevenly frequent: speed does not depend on what is said."""
    rng = random.Random(0)
    vocabulary = Vocabulary((*SPECIAL, *(f"w{n}" for n in range(WORDS - len(SPECIAL)))))
    names = vocabulary.words[len(SPECIAL) :]
    weights = [1 / (rank + 3) for rank in range(len(names))]
    references = [
        [rng.choices(names, weights, k=max(3, round(rng.gammavariate(8, 1.35)))) for _ in range(5)]
        for _ in range(images)
    ]
    return references, vocabulary


def made_up_split(path: Path, layer: str, device: torch.device) -> Split:
    """Such captions of random features, read from a cache in `path` as training reads them."""
    count, shape = IMAGES[layer], VECTOR if layer == "pooled" else GRID
    pre = Preprocessing(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    recipe = FeatureRecipe(
        layer, "mean", "squash", False, None, (View("made_up", "random:0", "", pre),)
    )
    ids = [f"{number:06d}" for number in range(count)]
    rng = np.random.default_rng(0)
    with create_features(path, ids, shape, "float16", recipe) as rows:
        for _ in range(count):
            rows.append(rng.random((1, *shape), dtype=np.float32))
    references, vocabulary = made_up_references(count)
    features = FeatureDataset(read_features(path), ids, device)
    return Split(features, references, encode(references, vocabulary))


class _SingleItems(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: Split) -> None:
        self._data = data
        self._features = data.features[:].cpu()

    def __len__(self) -> int:
        return len(self._data.captions)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        captions: EncodedCaptions = self._data.captions
        words = captions.token_ids[i, : captions.lengths[i]]
        return self._features[captions.images[i]], words


def _collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    items.sort(key=lambda item: -len(item[1]))
    words = pad_sequence([words for _, words in items], batch_first=True)
    return torch.stack([f for f, _ in items]), words, [len(words) for _, words in items]


def tutorial(data: Split, config: TrainConfig) -> Callable[[], int]:
    device = data.features.device
    kind: type[PooledDecoder | AttentionDecoder | PeerTopDown]
    kind = PooledDecoder if config.feature_kind == "pooled" else AttentionDecoder
    kind = PeerTopDown if config.decoder == "top_down_attention" else kind
    decoder = kind(data.features.shape[-1], WORDS, config).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.learning_rate)
    loader = DataLoader(
        _SingleItems(data), batch_size=config.batch_size, shuffle=True, collate_fn=_collate
    )

    def epoch() -> int:
        decoder.train()
        for features, words, lengths in loader:
            features, words = features.to(device), words.to(device)
            logits, targets = decoder(features, words, lengths)
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
            optimizer.step()
            loss.item()  # as tutorials do, for their log
        return num_tokens(data)

    return epoch


def num_tokens(data: Split) -> int:
    return int(data.captions.lengths.sum()) - len(data.captions)


def _trainer(data: Split, config: TrainConfig, precision: torch.dtype) -> Trainer:
    torch.manual_seed(0)
    decoder = build_decoder(DecoderConfig.of(config.model_dump(), data.features.shape, WORDS))
    decoder.set_feature_stats(data.features.mean.cpu(), data.features.std.cpu())
    return Trainer(decoder.to(data.features.device), config, data, precision)


def ours(data: Split, config: TrainConfig, precision: torch.dtype) -> Callable[[], int]:
    trainer, numbers = _trainer(data, config, precision), itertools.count(1)

    def epoch() -> int:
        trainer.train_epoch(next(numbers))
        return num_tokens(data)

    return epoch


def bare(data: Split, config: TrainConfig, precision: torch.dtype) -> Callable[[], int]:
    """Only the arithmetic: forward, backward and update on batches made beforehand, features and
    all."""
    trainer = _trainer(data, config, precision)
    device = data.features.device
    ready = list(iter_split_batches(data, config, torch.Generator(), device))
    features = [data.features[batch.images] for batch in ready]

    def epoch() -> int:
        decoder = trainer.decoder.train()
        for batch, rows in zip(ready, features, strict=True):
            loss = caption_loss(
                decoder,
                rows,
                batch.inputs,
                batch.targets,
                batch.token_index,
                label_smoothing=config.label_smoothing,
                dtype=precision,
            )
            trainer.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            trainer.optimizer.step()
        return sum(batch.tokens for batch in ready)

    return epoch


def flops_per_token(config: TrainConfig) -> float:
    """Of Show and Tell forward and backward, which costs twice the forward (the image's own
    step left out)."""
    E, H = config.embed_size, config.hidden_size
    cell = sum(2 * 4 * H * ((E if layer == 0 else H) + H) for layer in range(config.num_layers))
    return 3 * (cell + 2 * H * WORDS)


def rows(
    config: TrainConfig, device: torch.device, precision: torch.dtype, repeats: int
) -> Iterator[Row]:
    """Decoders of the params' sizes, of vectors and of grids; what no tutorial does is left out."""
    alike = {"word_dropout": 0.0, "scheduled_sampling": 0.0, "feature_noise": 0.0, "ema_decay": 0.0}
    alike |= {"min_epoch_steps": 1}  # few captions stand for many: batches of full size
    for name in ("show_and_tell", "spatial_attention", "top_down_attention"):
        own = config.model_copy(update={"decoder": name, **alike})
        yield from _rows(own, device, precision, repeats)


def _rows(
    config: TrainConfig, device: torch.device, precision: torch.dtype, repeats: int
) -> Iterator[Row]:
    with TemporaryDirectory() as scratch:
        data = made_up_split(Path(scratch, "features.h5"), config.feature_kind, device)
        rates = interleaved(
            {
                "ours": ours(data, config, precision),
                "bare": bare(data, config, precision),
                "tutorial": tutorial(data, config),
            },
            repeats,
        )
    what, rate = f"training, {config.decoder}", rates["ours"]
    pooled = config.feature_kind == "pooled"
    yield Row(what, rate, "tokens/s", "bare loop", rate / rates["bare"], "0.90")
    bar = {"show_and_tell": "2.5", "spatial_attention": "6"}.get(config.decoder, "aim 4")
    beside = "peer" if config.decoder == "top_down_attention" else "tutorial"
    yield Row(what, rate, "tokens/s", beside, rate / rates["tutorial"], bar)
    if pooled:
        limit = gemm_flops(device, precision) / flops_per_token(config)
        yield Row(what, rate, "tokens/s", "arithmetic limit", rate / limit, "aim 0.75")
