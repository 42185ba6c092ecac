"""Stage 7: self-critical training, in which the decoder learns from its own captions' scores.

With `epochs: 0` the trained model passes through unchanged.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import run
from pipeline.config import read
from pipeline.config.scst import ScstConfig
from pipeline.device import choose_device, make_repeatable, training_precision
from pipeline.model.captioning import greedy_scores
from pipeline.model.reinforce import Reinforce
from pipeline.model.split import load_split
from pipeline.store.features import read_features
from pipeline.store.files import atomic
from pipeline.store.model import Model, read_model, write_model
from pipeline.store.recipe import require_same_recipe
from pipeline.store.results import write_history
from pipeline.store.table import read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """A row of the history; epoch 0 is the model as it came. Scores and reward x100."""

    epoch: int
    reward: float | None  # mean CIDEr-D of the captions drawn, <end> counted as a word
    cross_entropy: float | None  # nats a word
    bleu_4: float
    cider: float


def scst(
    trained: Path, features: Path, table: Path, out: Path, history: Path, config: ScstConfig
) -> None:
    """Write the best epoch's model to `out` and a row an epoch to `history`.

    Raises:
        InputError: an input cannot be used, or the loss is no number any more.
    """
    device = choose_device(config.device)
    precision = training_precision(config.precision, device)
    make_repeatable(config.seed)
    model, cache = read_model(trained, device, made_by="train"), read_features(features)
    require_same_recipe(cache.recipe, model.recipe, where=str(features))
    with atomic(out) as scratch:
        shutil.copyfile(trained, scratch)
    captions = read_table(table)
    validate = load_split(cache, captions, "dev", model.vocabulary, device)
    rows = [Epoch(0, None, None, *greedy_scores(model.decoder, validate, model.vocabulary))]
    write_history(history, rows)
    log.info("before: dev BLEU-4 %.2f, dev CIDEr %.2f", rows[0].bleu_4, rows[0].cider)
    if config.epochs == 0:
        log.info("scst.epochs is 0: the trained model stays as it is")
        return
    learn = load_split(cache, captions, "train", model.vocabulary, device)
    reinforce = Reinforce(model.decoder, learn, config, precision)
    for number in range(1, config.epochs + 1):
        began = time.monotonic()
        learnt = reinforce.epoch(number)
        took = time.monotonic() - began
        scores = greedy_scores(reinforce.learnt, validate, model.vocabulary)
        rows.append(Epoch(number, learnt.reward, learnt.cross_entropy, *scores))
        write_history(history, rows)
        best = max(rows, key=lambda row: (row.cider, -row.epoch)).epoch
        if best == number:
            write_model(out, Model(reinforce.learnt, model.vocabulary, cache.recipe))
        log.info(
            "epoch %d/%d: reward %.1f, dev BLEU-4 %.2f, dev CIDEr %.2f%s (%.0f s)",
            *(number, config.epochs, learnt.reward, *scores),
            *(" *" if best == number else "", took),
        )
        if number - best >= config.patience:
            log.info("no better for %d epochs: stopping", config.patience)
            break
    log.info("kept epoch %d", best)


def main(
    trained: Annotated[Path, typer.Option(help="The trained model.")],
    features: Annotated[Path, typer.Option(help="The cached features.")],
    table: Annotated[Path, typer.Option(help="The captions table.")],
    out: Annotated[Path, typer.Option(help="Where to write the model (safetensors).")],
    history: Annotated[Path, typer.Option(help="Where to write the history (CSV).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Let the decoder learn from its own captions' scores."""
    scst(trained, features, table, out, history, read(params, ScstConfig))


if __name__ == "__main__":
    run(main)
