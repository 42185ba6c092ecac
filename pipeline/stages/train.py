"""Stage 6: the decoder learns captions from the cached features, by teacher forcing.

The best epoch is chosen by captions that the model makes on its own on the val split; scores of
teacher-forced words say nothing about captions.
"""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import read_summary, read_table, warn_small
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.config import read
from pipeline.config.train import TrainConfig
from pipeline.dataset.split import load_split
from pipeline.decoders.build import build_decoder
from pipeline.decoders.captioner_file import TrainedDecoder, write_model
from pipeline.decoders.decoder import DecoderConfig
from pipeline.evaluation.reports import write_history
from pipeline.features.feature_cache import read_features
from pipeline.generation.generate import GreedyValidator, warn_below_constant
from pipeline.runtime.checkpoint import Checkpoint, discard_if_complete, run_fingerprint
from pipeline.runtime.device import resolve_device, resolve_dtype, seed_everything
from pipeline.runtime.errors import InputError, counted
from pipeline.training.trainer import Trainer

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
    features: Path,
    table: Path,
    summary: Path,
    vocabulary: Path,
    out: Path,
    history: Path,
    config: TrainConfig,
) -> None:
    """Write the best epoch's model to `out` and a row an epoch to `history`.

    A run that was killed goes on where it stood, and ends with the same bytes.

    Raises:
        InputError: an input cannot be used, or the loss is no number any more.
    """
    device = resolve_device(config.device)
    precision = resolve_dtype(config.precision, device)
    seed_everything(config.seed, config.deterministic)
    about, cache = read_summary(summary), read_features(features)
    discard_if_complete(features)
    words = read_vocabulary(vocabulary, about.table_digest)
    if cache.recipe.layer != config.layer:
        raise InputError(
            f"{cache.path} holds {cache.recipe.layer} features, and the decoder {config.decoder} "
            f"takes {config.layer} ones; set extract.layer: {config.layer}, or another "
            "train.decoder"
        )
    captions = read_table(table, about)
    learn, validate = (
        load_split(cache, captions, name, words, device) for name in ("train", "val")
    )
    log.info(
        "%d captions of %s to learn from, %s to validate by: %s, %s on %s",
        *(len(learn.captions), counted(len(learn.references), "image")),
        counted(len(validate.references), "image"),
        *(cache.recipe.label, precision, device),
    )
    warn_small("val", len(validate.references))
    longest = learn.max_length
    longer = int((learn.captions.lengths - 2 > longest).sum())
    log.info(
        "captions of at most %d words%s",
        longest,
        f"; {longer} to learn from are longer" if longer else "",
    )
    decoder = build_decoder(decoder_config(config, learn.features.shape, len(words))).to(device)
    decoder.set_feature_stats(learn.features.mean, learn.features.std)
    fit = Trainer(decoder, config, learn.captions, precision)
    scores = GreedyValidator(fit.ema_decoder, validate, words, longest)
    fingerprint = run_fingerprint(
        [config.model_dump(), str(precision)], [features, table, vocabulary], device.type
    )
    checkpoint = Checkpoint(out, fingerprint, config.checkpoint_seconds)
    rows: list[Epoch] = []

    def save() -> None:
        tensors, header = fit.save()
        checkpoint.save(tensors, header | {"rows": [asdict(row) for row in rows]})

    if saved := checkpoint.load():
        rows = [Epoch(**row) for row in saved[1]["rows"]]
        checkpoint.restore_best(out)
        write_history(history, rows)
        if not checkpoint.finished:
            fit.load(*saved)
            log.info("going on after epoch %d and %d steps of an interrupted run", *fit.place)
    while not ended(rows, config):
        number = len(rows) + 1
        began, learning_rate = time.monotonic(), fit.learning_rate_at_epoch(number)
        with checkpoint.steps(save) as after_step:
            train_loss = fit.epoch(learn, number, after_step)
        trained = time.monotonic()
        val_loss = fit.loss(validate)
        bleu_4, cider_mean = scores()
        rows.append(Epoch(number, learning_rate, train_loss, val_loss, bleu_4, cider_mean))
        best = best_epoch(rows, config)
        if best == number:
            model = TrainedDecoder(
                fit.ema_decoder, words, cache.recipe, about.split_digest, longest
            )
            write_model(out, model)
            checkpoint.save_best(out)
        save()
        write_history(history, rows)
        log.info(
            "epoch %d/%d: loss %.3f, val loss %.3f, val BLEU-4 %.2f, val CIDEr %.2f%s"
            " (%.0f s, and %.0f s to validate)",
            *(number, config.epochs, train_loss, val_loss, bleu_4, cider_mean),
            " *" if best == number else "",
            *(trained - began, time.monotonic() - trained),
        )
    if len(rows) < config.epochs:
        log.info("no better for %d epochs: stopped", config.patience)
    best = best_epoch(rows, config)
    log.info("kept epoch %d", best)
    warn_below_constant(rows[best - 1].cider, learn, validate)
    checkpoint.mark_complete({"rows": [asdict(row) for row in rows]})


def ended(rows: list[Epoch], config: TrainConfig) -> bool:
    """Whether all epochs are over, or none has been the best for `patience` of them.

    While every score is 0, nothing has been said that could get worse.
    """
    if len(rows) in (0, config.epochs):
        return len(rows) > 0
    scores = any(getattr(row, config.select_by) > 0 for row in rows)
    return scores and rows[-1].epoch - best_epoch(rows, config) >= config.patience


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
    """The number of the best epoch so far; of equal scores the one of the lowest val loss."""
    return max(rows, key=lambda row: (getattr(row, config.select_by), -row.val_loss)).epoch


def main(
    features: Annotated[Path, typer.Option(help="The cached features.")],
    table: Annotated[Path, typer.Option(help="The captions table.")],
    summary: Annotated[Path, typer.Option(help="The table's summary.")],
    vocabulary: Annotated[Path, typer.Option(help="The vocabulary.")],
    out: Annotated[Path, typer.Option(help="Where to write the model (safetensors).")],
    history: Annotated[Path, typer.Option(help="Where to write the history (CSV).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Train the decoder on the cached features."""
    train(features, table, summary, vocabulary, out, history, read(params, TrainConfig))
