"""Stage 6: the decoder learns captions from the cached features, by teacher forcing.

The best epoch is chosen by captions that the model makes on its own on the dev split; scores of
teacher-forced words say nothing about captions.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import run
from pipeline.config import read
from pipeline.config.train import TrainConfig
from pipeline.device import choose_device, make_repeatable, training_precision
from pipeline.errors import InputError
from pipeline.model.build import build_decoder
from pipeline.model.captioning import greedy_scores
from pipeline.model.decoder import DecoderConfig
from pipeline.model.fit import Fit
from pipeline.model.split import load_split
from pipeline.store.features import read_features
from pipeline.store.model import Model, write_model
from pipeline.store.results import write_history
from pipeline.store.table import read_table
from pipeline.store.vocabulary import read_vocabulary

log = logging.getLogger(__name__)


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
        InputError: an input cannot be used, or the loss is no number any more.
    """
    device = choose_device(config.device)
    precision = training_precision(config.precision, device)
    make_repeatable(config.seed)
    words, cache = read_vocabulary(vocabulary), read_features(features)
    if cache.recipe.layer != config.layer:
        raise InputError(
            f"{cache.path} holds {cache.recipe.layer} features, and the decoder {config.decoder} "
            f"takes {config.layer} ones; set extract.layer: {config.layer}, or another "
            "train.decoder"
        )
    captions = read_table(table)
    learn, validate = (
        load_split(cache, captions, name, words, device) for name in ("train", "dev")
    )
    log.info(
        "%d captions of %d pictures: %s, %s on %s",
        *(len(learn.captions), len(learn.references), cache.recipe.label, precision, device),
    )
    decoder = build_decoder(decoder_config(config, learn.features.shape, len(words))).to(device)
    decoder.standardize_by(learn.features.mean, learn.features.std)
    fit = Fit(decoder, config, learn.captions, precision)
    rows: list[Epoch] = []
    for number in range(1, config.epochs + 1):
        began, learning_rate = time.monotonic(), fit.learning_rate
        train_loss = fit.epoch(learn, number)
        trained = time.monotonic()
        val_loss = fit.loss(validate)
        bleu_4, cider_mean = greedy_scores(fit.learnt, validate, words)
        rows.append(Epoch(number, learning_rate, train_loss, val_loss, bleu_4, cider_mean))
        write_history(history, rows)
        best = best_epoch(rows, config)
        if best == number:
            write_model(out, Model(fit.learnt, words, cache.recipe))
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


def decoder_config(
    config: TrainConfig, feature_shape: tuple[int, ...], words: int
) -> DecoderConfig:
    return DecoderConfig(
        decoder=config.decoder,
        cell=config.cell,
        feature_shape=feature_shape,
        vocabulary_size=words,
        embed_size=config.embed_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
        tied=config.tied,
    )


def best_epoch(rows: list[Epoch], config: TrainConfig) -> int:
    """The number of the best epoch so far; of equals, the first."""
    return max(rows, key=lambda row: (getattr(row, config.select_by), -row.epoch)).epoch


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
