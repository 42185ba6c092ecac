"""Stage 9: fit how confident the model may be of its captions, on val."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import warn_small
from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, EvaluateConfig
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.distributed.world import on_ranks
from pipeline.evaluation.confidence import fit_confidence, model_digests, write_confidence
from pipeline.evaluation.inputs import read_inputs
from pipeline.generation.generate import find_captions, search_batch_size, search_config
from pipeline.runtime import options
from pipeline.runtime.device import resolve_device, seed_everything

log = logging.getLogger(__name__)


def calibrate(
    models: Sequence[Path],
    features: Path,
    captions: Path,
    neighbors: Path,
    out: Path,
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> None:
    """Caption val with the search of the evaluate params, and write the fitted calibration.

    Args:
        models: one, or the members of an ensemble.
        neighbors: the training images' captions; read only for consensus reranking.

    Raises:
        InputError: an input cannot be used, or the model was trained on other features.
    """
    device = resolve_device(config.device)
    seed_everything(0, config.deterministic)
    inputs = read_inputs(models, features, captions, device)
    trained, cache, table = inputs.models, inputs.cache, inputs.table
    val = table.split("val")
    warn_small("val", len(val.ids))
    search = search_config(config, max(model.max_length for model in trained))
    found = find_captions(
        inputs.search(search, neighbors, device),
        FeatureDataset(cache, val.ids, device),
        search_batch_size(config, device),
        ranks,
    )
    if not ranks.is_main:
        return
    tokens = [trained[0].vocabulary.decode(caption.token_ids) for caption in found]
    confidence = fit_confidence(found, tokens, val.references, model_digests(trained), search)
    write_confidence(out, confidence)
    log.info(
        "confidence: the probability of a CIDEr of at least %.1f, the median of %s captions",
        confidence.threshold,
        "human" if confidence.reference == "human" else "the model's own",
    )


def main(
    model: options.Models = [Path("models/captioner.safetensors")],  # noqa: B006
    features: options.Features = Path("features/features.h5"),
    captions: options.Captions = Path("data/captions.csv"),
    neighbors: options.Neighbors = Path("models/neighbors.safetensors"),
    out: Annotated[Path, typer.Option(help="The calibration to write (JSON).")] = Path(
        "models/confidence.json"
    ),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Fit how confident the model may be of its captions."""
    config, start = load_params(params, EvaluateConfig), load_params(params, DistributedConfig)
    work = partial(calibrate, model, features, captions, neighbors, out, config)
    on_ranks(work, start.processes, start.timeout, config.device)
