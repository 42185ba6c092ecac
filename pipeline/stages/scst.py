"""Stage 7: self-critical training, in which the decoder learns from its own captions' scores.

With `epochs: 0` the trained model passes through unchanged.
"""

import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import read_summary, read_table
from pipeline.config import read
from pipeline.config.scst import ScstConfig
from pipeline.dataset.split import load_split
from pipeline.decoders.captioner_file import read_model, require_same_split, write_model
from pipeline.decoders.decoder import Decoder
from pipeline.evaluation.reports import write_history
from pipeline.features.feature_cache import read_features
from pipeline.features.recipe import require_same_recipe
from pipeline.generation.generate import GreedyValidator, warn_below_constant
from pipeline.runtime.checkpoint import Checkpoint, discard_if_complete, run_fingerprint
from pipeline.runtime.device import resolve_device, resolve_dtype, seed_everything
from pipeline.runtime.files import atomic_write
from pipeline.self_critical.trainer import SelfCriticalTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """A row of the history; epoch 0 is the model as it came. Scores and reward x100."""

    epoch: int
    reward: float | None  # of the captions drawn, a mean; <end> counted as a word
    cross_entropy: float | None  # nats a word
    bleu_4: float
    cider: float


def scst(
    trained: Path,
    features: Path,
    table: Path,
    summary: Path,
    out: Path,
    history: Path,
    config: ScstConfig,
) -> None:
    """Write the best epoch's model to `out` and a row an epoch to `history`.

    A run that was killed goes on where it stood, and ends with the same bytes.

    Raises:
        InputError: an input cannot be used, or the loss is no number any more.
    """
    device = resolve_device(config.device)
    precision = resolve_dtype(config.precision, device)
    seed_everything(config.seed, config.deterministic)
    model, cache = read_model(trained, device, made_by="train"), read_features(features)
    require_same_recipe(cache.recipe, model.recipe, where=str(features))
    discard_if_complete(trained)
    about = read_summary(summary)
    require_same_split(model, about.split_digest, where=str(trained))
    fingerprint = run_fingerprint(
        [config.model_dump(), str(precision)], [trained, features, table], device.type
    )
    checkpoint = Checkpoint(out, fingerprint, config.checkpoint_seconds)
    captions = read_table(table, about)
    validate = load_split(cache, captions, "val", model.vocabulary, device)

    def scores_of(decoder: Decoder) -> GreedyValidator:
        return GreedyValidator(decoder, validate, model.vocabulary, model.max_length)

    saved = checkpoint.load() if config.epochs else None
    if saved:
        rows = [Epoch(**row) for row in saved[1]["rows"]]
        checkpoint.restore_best(out)
    else:
        rows = [Epoch(0, None, None, *scores_of(model.decoder)())]
        log.info("before: val BLEU-4 %.2f, val CIDEr %.2f", rows[0].bleu_4, rows[0].cider)
        with atomic_write(out) as scratch:
            shutil.copyfile(trained, scratch)
    write_history(history, rows)
    if config.epochs == 0:
        log.info("scst.epochs is 0: the trained model stays as it is")
        return
    if not saved:
        checkpoint.save_best(out)
    learn = load_split(cache, captions, "train", model.vocabulary, device)
    reinforce = SelfCriticalTrainer(model.decoder, learn, config, precision, model.max_length)
    scores_of_learnt = scores_of(reinforce.learnt)

    def save() -> None:
        tensors, header = reinforce.save()
        checkpoint.save(tensors, header | {"rows": [asdict(row) for row in rows]})

    if saved and not checkpoint.finished:
        reinforce.load(*saved)
        log.info("going on after epoch %d of an interrupted run", len(rows) - 1)
    while not ended(rows, config):
        number, began = len(rows), time.monotonic()
        with checkpoint.steps(save) as after_step:
            learnt = reinforce.epoch(number, after_step)
        took = time.monotonic() - began
        scores = scores_of_learnt()
        rows.append(Epoch(number, learnt.reward, learnt.cross_entropy, *scores))
        best = best_epoch(rows)
        if best == number:
            write_model(out, replace(model, decoder=reinforce.learnt))
            checkpoint.save_best(out)
        save()
        write_history(history, rows)
        log.info(
            "epoch %d/%d: reward %.1f, val BLEU-4 %.2f, val CIDEr %.2f%s (%.0f s)",
            *(number, config.epochs, learnt.reward, *scores),
            *(" *" if best == number else "", took),
        )
    if len(rows) <= config.epochs:
        log.info("no better for %d epochs: stopped", config.patience)
    best = best_epoch(rows)
    log.info("kept epoch %d", best)
    warn_below_constant(rows[best].cider, learn, validate)
    checkpoint.mark_complete({"rows": [asdict(row) for row in rows]})


def best_epoch(rows: list[Epoch]) -> int:
    """The number of the best epoch so far; of equal CIDEr the one of the best BLEU-4."""
    return max(rows, key=lambda row: (row.cider, row.bleu_4, -row.epoch)).epoch


def ended(rows: list[Epoch], config: ScstConfig) -> bool:
    """Whether all epochs are over, or none has been the best for `patience` of them; while every
    CIDEr is 0, nothing has been said that could get worse."""
    last = rows[-1].epoch
    if last == config.epochs:
        return True
    return any(row.cider > 0 for row in rows) and last - best_epoch(rows) >= config.patience


def main(
    trained: Annotated[Path, typer.Option(help="The trained model.")],
    features: Annotated[Path, typer.Option(help="The cached features.")],
    table: Annotated[Path, typer.Option(help="The captions table.")],
    summary: Annotated[Path, typer.Option(help="The table's summary.")],
    out: Annotated[Path, typer.Option(help="Where to write the model (safetensors).")],
    history: Annotated[Path, typer.Option(help="Where to write the history (CSV).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Let the decoder learn from its own captions' scores."""
    scst(trained, features, table, summary, out, history, read(params, ScstConfig))
