"""Stage 6: the decoder learns captions from the cached features, by teacher forcing.

The best epoch is chosen by captions that the model makes on its own on the dev split; scores of
teacher-forced words say nothing about captions.
"""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from pipeline.command import run
from pipeline.config import read
from pipeline.config.train import TrainConfig
from pipeline.device import choose_device, make_repeatable, training_precision
from pipeline.errors import InputError
from pipeline.model.batches import Batch, EncodedCaptions, batches, encode
from pipeline.model.captioning import caption_features
from pipeline.model.decoder import DecoderConfig, ShowAndTell
from pipeline.model.search import Search
from pipeline.progress import bar
from pipeline.scoring.metrics import bleu, cider
from pipeline.store.features import read_features
from pipeline.store.files import atomic
from pipeline.store.model import Model, write_model
from pipeline.store.recipe import FeatureRecipe
from pipeline.store.table import captions_of, read_table
from pipeline.store.vocabulary import PAD, Vocabulary, read_vocabulary

log = logging.getLogger(__name__)

# Greedy: the best epoch by it is the best by beam search too, or next to it, at a fifth the time.
VALIDATION = Search(beam=1, max_length=20)


@dataclass(frozen=True)
class Data:
    """One split on the device: (N, D) features of N pictures, and their captions."""

    features: Tensor
    references: list[list[list[str]]]
    captions: EncodedCaptions


@dataclass(frozen=True)
class Epoch:
    """A row of the history; losses in nats a word, scores x100."""

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    bleu_4: float
    cider: float


def train(
    features: Path, table: Path, vocabulary: Path, out: Path, history: Path, config: TrainConfig
) -> None:
    """Write the best epoch's model to `out` and a row an epoch to `history`.

    Raises:
        InputError: an input cannot be used, or the loss stops being a number.
    """
    device = choose_device(config.device)
    precision = training_precision(config.precision, device)
    make_repeatable(config.seed)
    words = read_vocabulary(vocabulary)
    learn, validate, recipe = load_data(features, table, words, device)
    log.info(
        "%d captions of %d pictures: %s, %s on %s",
        *(len(learn.captions), len(learn.references), recipe.label, precision, device),
    )
    decoder = ShowAndTell(decoder_config(config, learn.features.shape[1], len(words))).to(device)
    decoder.standardize_by(learn.features)
    optimizer = torch.optim.AdamW(
        decoder.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    steps = math.ceil(len(learn.captions) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.epochs * steps, config.warmup)
    )
    shuffle = torch.Generator().manual_seed(config.seed)
    rows: list[Epoch] = []
    for number in range(1, config.epochs + 1):
        began = time.monotonic()
        learning_rate = float(schedule.get_last_lr()[0])
        train_loss = train_epoch(
            decoder, learn, optimizer, schedule, shuffle, config, precision, number
        )
        trained = time.monotonic()
        val_loss = validation_loss(decoder, validate, config, precision)
        bleu_4, cider_mean = validation_scores(decoder, validate, words)
        rows.append(Epoch(number, learning_rate, train_loss, val_loss, bleu_4, cider_mean))
        _write_history(history, rows)
        best = best_epoch(rows, config)
        if best == number:
            write_model(out, Model(decoder, words, recipe))
        log.info(
            "epoch %d/%d: loss %.3f, dev loss %.3f, dev BLEU-4 %.2f, dev CIDEr %.2f%s"
            " (%.0f s, and %.0f s to validate)",
            *(number, config.epochs, train_loss, val_loss, bleu_4, cider_mean),
            " *" if best == number else "",
            *(trained - began, time.monotonic() - trained),
        )
        if number - best >= config.patience:
            log.info("no better for %d epochs: stopping", config.patience)
            break
    log.info("kept epoch %d", best_epoch(rows, config))


def load_data(
    features: Path, table: Path, vocabulary: Vocabulary, device: torch.device
) -> tuple[Data, Data, FeatureRecipe]:
    """The train and dev splits, and how their features were made."""
    cache = read_features(features)
    if cache.recipe.layer != "pooled":
        raise InputError(
            f"{features} holds {cache.recipe.layer} features, and this decoder takes pooled "
            "vectors; set extract.layer: pooled"
        )
    captions = read_table(table)

    def split(name: str) -> Data:
        own = captions_of(captions, name)
        rows = torch.from_numpy(cache.rows(own.ids)).to(device)
        return Data(rows, own.references, encode(own.references, vocabulary))

    return split("train"), split("dev"), cache.recipe


def decoder_config(config: TrainConfig, feature_size: int, words: int) -> DecoderConfig:
    return DecoderConfig(
        cell=config.cell,
        feature_size=feature_size,
        vocabulary_size=words,
        embed_size=config.embed_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        dropout=config.dropout,
    )


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def train_epoch(
    decoder: ShowAndTell,
    data: Data,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    shuffle: torch.Generator,
    config: TrainConfig,
    precision: torch.dtype,
    number: int,
) -> float:
    """One pass over the captions; the mean loss per word."""
    decoder.train()
    device = data.features.device
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    steps = math.ceil(len(data.captions) / config.batch_size)
    cut = batches(data.captions, config.batch_size, device, shuffle)
    for batch in bar(cut, label=f"epoch {number}", total=steps, unit="batch"):
        loss = caption_loss(decoder, data.features, batch, config.label_smoothing, precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        total += loss.detach() * batch.tokens  # summed on the device: no wait per step
        tokens += batch.tokens
    mean = float(total) / tokens
    if not math.isfinite(mean):
        raise InputError(
            f"the loss stopped being a number in epoch {number}, at a learning rate of "
            f"{schedule.get_last_lr()[0]:.2g}; lower train.learning_rate or train.clip_norm"
        )
    return mean


def caption_loss(
    decoder: ShowAndTell, features: Tensor, batch: Batch, smoothing: float, precision: torch.dtype
) -> Tensor:
    """Mean cross-entropy per word of a batch, with label smoothing."""
    device = features.device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        logits = decoder(features[batch.pictures], batch.inputs)  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.targets.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
    )


@torch.inference_mode()
def validation_loss(
    decoder: ShowAndTell, data: Data, config: TrainConfig, precision: torch.dtype
) -> float:
    """Mean cross-entropy per word of dev, without smoothing: comparable across params."""
    decoder.eval()
    total, tokens = 0.0, 0
    for batch in batches(data.captions, 4 * config.batch_size, data.features.device, shuffle=None):
        loss = caption_loss(decoder, data.features, batch, 0.0, precision)
        total, tokens = total + float(loss) * batch.tokens, tokens + batch.tokens
    return total / tokens


def validation_scores(
    decoder: ShowAndTell, data: Data, vocabulary: Vocabulary
) -> tuple[float, float]:
    """BLEU-4 and CIDEr of greedy captions of dev."""
    decoder.eval()
    captions = caption_features(decoder, data.features, vocabulary, VALIDATION, batch_size=250)
    return bleu(captions, data.references)[3], cider(captions, data.references)[0]


def best_epoch(rows: list[Epoch], config: TrainConfig) -> int:
    """The number of the best epoch so far; of equals, the first."""
    return max(rows, key=lambda row: (getattr(row, config.select_by), -row.epoch)).epoch


def _write_history(path: Path, rows: list[Epoch]) -> None:
    with atomic(path) as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False, float_format="%.6g", lineterminator="\n")


def main(
    features: Annotated[Path, typer.Option(help="The cached features.")],
    table: Annotated[Path, typer.Option(help="The captions table.")],
    vocabulary: Annotated[Path, typer.Option(help="The vocabulary.")],
    out: Annotated[Path, typer.Option(help="Where to write the model (safetensors).")],
    history: Annotated[Path, typer.Option(help="Where to write the history (CSV).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Train the decoder on the cached features."""
    train(features, table, vocabulary, out, history, read(params, TrainConfig))


if __name__ == "__main__":
    run(main)
