"""Stage 7: train the decoder on the cached features with teacher forcing.

The best epoch is chosen by greedy captions of the val split: the loss on given words says little
about captions.
"""

import logging
from functools import partial
from pathlib import Path

from pipeline.captions.table import read_table, warn_small
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, TrainConfig
from pipeline.dataset.feature_cache import read_features
from pipeline.dataset.split import load_split
from pipeline.decoders.captioner_file import TrainedDecoder, write_model
from pipeline.decoders.decoder import DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.distributed.checkpoint import SharedCheckpoint
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.distributed.world import on_ranks
from pipeline.generation.generate import greedy_validator, warn_if_below_constant
from pipeline.runtime import options
from pipeline.runtime.checkpoint import discard_if_complete, run_fingerprint
from pipeline.runtime.device import resolve_device, resolve_dtype, seed_everything
from pipeline.runtime.errors import InputError
from pipeline.training.history import History, Row
from pipeline.training.loop import fit
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    features: Path,
    captions: Path,
    vocabulary: Path,
    out: Path,
    history: Path,
    config: TrainConfig,
    ranks: Ranks = ALONE,
) -> None:
    """Write the best epoch's model to `out` and a row per epoch to `history`.

    A run that was killed resumes and ends with the same bytes.

    Raises:
        InputError: an input cannot be used, or the loss is no longer finite.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    seed_everything(config.seed, config.deterministic)

    table, cache = read_table(captions), read_features(features)
    discard_if_complete(features)
    vocab = read_vocabulary(vocabulary, table.info.table_digest)
    if cache.recipe.layer != config.feature_kind:
        raise InputError(
            f"{cache.path} has {cache.recipe.layer} features, but the decoder {config.decoder} "
            f"takes {config.feature_kind} ones; set extract.layer: {config.feature_kind}, or "
            "another train.decoder"
        )
    train_split = load_split(cache, table, "train", vocab, device)
    val_split = load_split(cache, table, "val", vocab, device)
    max_length = train_split.max_length
    longer = int((train_split.captions.lengths - 2 > max_length).sum())  # less <start>, <end>
    log.info("captions of at most %d tokens; %d training captions are longer", max_length, longer)
    log.info("%s, %s on %s", cache.recipe.label, dtype, device)
    warn_small("val", len(val_split.references))

    decoder_config = DecoderConfig.of(config.model_dump(), train_split.features.shape, len(vocab))
    decoder = build_decoder(decoder_config).to(device)
    decoder.set_feature_stats(train_split.features.mean, train_split.features.std)
    trainer = Trainer(decoder, config, train_split, dtype, ranks)
    score_captions = greedy_validator(trainer.ema_decoder, val_split, vocab, max_length, ranks)

    def validate() -> Row:
        return {"val_loss": trainer.loss(val_split), **score_captions()}

    def write_best() -> None:
        digest = table.info.split_digest
        model = TrainedDecoder(trainer.ema_decoder, vocab, cache.recipe, digest, max_length)
        write_model(out, model)

    params, inputs = [config.model_dump(), str(dtype)], [cache.index, captions, vocabulary]
    fingerprint = run_fingerprint("train", params, inputs, device.type)
    rows = History(history, rank_by=[config.select_by, "-val_loss"])
    with SharedCheckpoint(ranks, out, fingerprint, config.checkpoint_seconds) as checkpoint:
        fit(trainer, validate, write_best, out, rows, checkpoint, config.epochs, config.patience)
        warn_if_below_constant(rows.best["cider"] or 0.0, train_split, val_split)


def main(
    features: options.Features = Path("features/features.h5"),
    captions: options.Captions = Path("data/captions.csv"),
    vocabulary: options.Vocabulary = Path("data/vocabulary.json"),
    out: options.OutModel = Path("models/trained.safetensors"),
    history: options.OutHistory = Path("reports/history.csv"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Train the decoder on the cached features."""
    config, start = load_params(params, TrainConfig), load_params(params, DistributedConfig)
    paths = (features, captions, vocabulary, out, history)
    on_ranks(partial(train, *paths, config), start.processes, start.timeout, config.device)
