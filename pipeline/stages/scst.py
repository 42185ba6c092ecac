"""Stage 8: self-critical training, on the scores of the decoder's own captions.

With `epochs: 0` the trained model passes through unchanged.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import read_table
from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, ScstConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.split import load_split
from pipeline.decoders.captioner_file import read_model, require_same_split, write_model
from pipeline.distributed.checkpoint import SharedCheckpoint
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.distributed.world import on_ranks
from pipeline.features.recipe import require_same_recipe
from pipeline.generation.generate import greedy_validator, warn_if_below_constant
from pipeline.runtime import options
from pipeline.runtime.checkpoint import discard_if_complete, run_fingerprint
from pipeline.runtime.device import resolve_device, resolve_dtype, seed_everything
from pipeline.runtime.files import copy_file
from pipeline.self_critical.trainer import SelfCriticalTrainer
from pipeline.training.history import History
from pipeline.training.loop import fit

log = logging.getLogger(__name__)


def scst(
    trained: Path,
    features: Path,
    captions: Path,
    out: Path,
    history: Path,
    config: ScstConfig,
    ranks: Ranks = ALONE,
) -> None:
    """Write the best epoch's model to `out` and a row per epoch to `history`.

    Epoch 0 is the trained model. A run that was killed resumes and ends with the same bytes.

    Raises:
        InputError: an input cannot be used, or the loss is no longer finite.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    seed_everything(config.seed, config.deterministic)

    model, cache = read_model(trained, device), read_features(features)
    require_same_recipe(cache.recipe, model.recipe, where=str(features))
    discard_if_complete(trained)
    table = read_table(captions)
    require_same_split(model, table.info.split_digest, where=str(trained))
    val_split = load_split(cache, table, "val", model.vocabulary, device)

    validated_on = (val_split, model.vocabulary, model.max_length, ranks)
    before = greedy_validator(model.decoder, *validated_on)()
    log.info("epoch 0: bleu_4 %.4g, cider %.4g", before["bleu_4"], before["cider"])
    rows = History(history, rank_by=["cider", "bleu_4"])
    rows.rows = [{"epoch": 0, "reward": None, "cross_entropy": None, **before}]
    if config.epochs == 0:
        log.info("scst.epochs is 0: the trained model stays as it is")
        if ranks.is_main:
            copy_file(trained, out)
            rows.write()
        return

    params, inputs = [config.model_dump(), str(dtype)], [trained, cache.index, captions]
    fingerprint = run_fingerprint("scst", params, inputs, device.type)
    train_split = load_split(cache, table, "train", model.vocabulary, device)
    length = model.max_length
    trainer = SelfCriticalTrainer(model.decoder, train_split, config, dtype, length, ranks)
    validate = greedy_validator(trainer.ema_decoder, *validated_on)

    def write_best() -> None:
        write_model(out, replace(model, decoder=trainer.ema_decoder))

    with SharedCheckpoint(ranks, out, fingerprint, config.checkpoint_seconds) as checkpoint:
        if ranks.is_main:
            copy_file(trained, out)
        fit(trainer, validate, write_best, out, rows, checkpoint, config.epochs, config.patience)
        warn_if_below_constant(rows.best["cider"] or 0.0, train_split, val_split)


def main(
    trained: Annotated[Path, typer.Option(help="The trained model.")] = Path(
        "models/trained.safetensors"
    ),
    features: options.Features = Path("features/features.h5"),
    captions: options.Captions = Path("data/captions.csv"),
    out: options.OutModel = Path("models/captioner.safetensors"),
    history: options.OutHistory = Path("reports/scst.csv"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Train the decoder on its own captions' scores."""
    config, start = load_params(params, ScstConfig), load_params(params, DistributedConfig)
    paths = (trained, features, captions, out, history)
    on_ranks(partial(scst, *paths, config), start.processes, start.timeout, config.device)
