"""Stage 10: caption a split that the model was not trained on, and score the captions."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.captions.table import warn_small
from pipeline.config.load import load_params
from pipeline.config.schema import DistributedConfig, EvaluateConfig
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.distributed.world import on_ranks
from pipeline.evaluation.confidence import match_calibration, model_digests, predictors
from pipeline.evaluation.diversity import diversity_stats, repeats_ngram
from pipeline.evaluation.inputs import read_inputs
from pipeline.evaluation.metrics_file import score_table, write_metrics
from pipeline.evaluation.reliability import reliability
from pipeline.evaluation.reports import (
    CONFIDENCE,
    ReportFiles,
    write_captions,
    write_lengths,
    write_references,
    write_scores,
)
from pipeline.generation.generate import find_captions, search_batch_size, search_config
from pipeline.metrics.baselines import best_constant_caption, human_scores
from pipeline.metrics.bleu import COUNT_NAMES
from pipeline.metrics.scores import (
    SCALE,
    bleu_counts,
    cider,
    compute_scores,
    rouge_l,
    sentence_bleu_4,
)
from pipeline.runtime import options
from pipeline.runtime.device import resolve_device, seed_everything

log = logging.getLogger(__name__)

WARN_FRACTION = 0.2  # the fraction of captions at which a limit of the search is worth a warning


def evaluate(
    models: Sequence[Path],
    confidence: Path,
    features: Path,
    captions: Path,
    neighbors: Path,
    out_dir: Path,
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
) -> None:
    """Caption a split; write the captions, their references, scores, lengths and metrics.

    Args:
        models: one, or the members of an ensemble.
        confidence: the calibration; ignored if it is of other models.
        neighbors: the training images' captions; read only for consensus reranking.

    Raises:
        InputError: an input cannot be used, or the model was trained on other features.
    """
    device = resolve_device(config.device)
    seed_everything(0, config.deterministic)
    inputs = read_inputs(models, features, captions, device)
    trained, cache, table = inputs.models, inputs.cache, inputs.table
    calibration = match_calibration(confidence, trained)
    split, training = table.split(config.split), table.split("train").captions
    warn_small(config.split, len(split.ids))
    warn_blocked(training, config.no_repeat_ngram_size)

    trained_length = max(model.max_length for model in trained)
    search = search_config(config, trained_length)
    found = find_captions(
        inputs.search(search, neighbors, device),
        FeatureDataset(cache, split.ids, device),
        search_batch_size(config, device),
        ranks,
    )
    if not ranks.is_main:
        return
    generated = [trained[0].vocabulary.decode(caption.token_ids) for caption in found]
    per_image_cider = cider(generated, split.references)[1]
    confidences = [calibration(caption) for caption in found] if calibration else []
    baselines = compute_baselines(training, split.references)
    metrics: dict[str, Any] = {
        **compute_scores(generated, split.references),
        **diversity_stats(generated, split.references),
        **({"backbone": "UNTRAINED"} if cache.recipe.untrained else {}),
        "split": f"{config.split} ({table.info.split})",
        "baselines": baselines,
        "meta": [
            {
                "scale": SCALE,
                "tokenizer": table.info.tokenizer,
                "split_digest": table.info.split_digest,
                "images": len(generated),
                "references": sum(map(len, split.references)) / len(generated),
                "excluded": table.info.excluded,
                "features": cache.recipe.label,
                "models": len(models),
                "model_digests": model_digests(trained),
                "max_length": search.max_length,
                "at_max_length": sum(len(caption) == search.max_length for caption in generated),
            }
        ],
    }
    if calibration:
        log_probs = [predictors(caption)[0] for caption in found]
        judged_by = (calibration.threshold, calibration.reference)
        fit = reliability(confidences, log_probs, per_image_cider, *judged_by)
        metrics["confidence"] = [asdict(fit)]
    scores = {
        "image_id": split.ids,
        "bleu_4_smoothed": sentence_bleu_4(generated, split.references),
        "cider": per_image_cider,
        "rouge_l": rouge_l(generated, split.references)[1],
        **dict(zip(COUNT_NAMES, bleu_counts(generated, split.references).T, strict=True)),
        **({CONFIDENCE: confidences} if calibration else {}),
    }
    out = ReportFiles.in_folder(out_dir)
    write_captions(out.captions, split.ids, generated)
    write_references(out.references, split.ids, split.references)
    write_scores(out.scores, scores)
    write_lengths(out.lengths, generated, split.references)
    write_metrics(out.metrics, metrics, reports=[out.captions, out.references, out.scores])
    log.info("%s, %s\n%s", metrics["split"], cache.recipe.label, score_table(metrics))
    warn_cut_off(generated, search.max_length, trained_length)
    if metrics["cider"] < baselines[0]["cider"]:
        log.warning(
            "CIDEr is below the constant caption's: the model has learned nothing about the images"
        )


def compute_baselines(
    training: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[dict[str, Any]]:
    """Score the best constant caption and, with several references per image, human captions."""
    constant = best_constant_caption(training, references)
    scores = compute_scores([constant] * len(references), references)
    baselines = [{"name": "constant", "caption": " ".join(constant), **scores}]
    if human := human_scores(references):
        baselines.append({"name": "human", **human})
    else:
        log.info("no human baseline: most images have a single reference")
    return baselines


def warn_cut_off(captions: Sequence[Sequence[str]], max_length: int, trained_length: int) -> None:
    """Warn if many captions reach a maximum length that is below the training captions'."""
    at_max = sum(len(caption) == max_length for caption in captions)
    if max_length < trained_length and at_max > WARN_FRACTION * len(captions):
        log.warning(
            "%d of %d captions have the %d words that evaluate.max_length allows and may be cut "
            "off; the model was trained on captions of up to %d: set it to auto",
            at_max,
            len(captions),
            max_length,
            trained_length,
        )


def warn_blocked(training: Sequence[Sequence[str]], n: int) -> None:
    """Warn if the search forbids a repetition that is common in the training captions."""
    fraction = sum(repeats_ngram(caption, n) for caption in training) / len(training) if n else 0.0
    if fraction > WARN_FRACTION:
        log.warning(
            "evaluate.no_repeat_ngram_size: %d forbids what %.0f %% of the training captions do: "
            "repeat %d words in a row; raise it, or set it to 0",
            n,
            100 * fraction,
            n,
        )


def main(
    model: options.Models = [Path("models/captioner.safetensors")],  # noqa: B006
    confidence: options.Confidence = Path("models/confidence.json"),
    features: options.Features = Path("features/features.h5"),
    captions: options.Captions = Path("data/captions.csv"),
    neighbors: options.Neighbors = Path("models/neighbors.safetensors"),
    out_dir: Annotated[
        Path,
        typer.Option(help="The folder for captions, references, scores, lengths and metrics."),
    ] = Path("reports"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Caption a split and score the captions."""
    config, start = load_params(params, EvaluateConfig), load_params(params, DistributedConfig)
    inputs = (model, confidence, features, captions, neighbors)
    work = partial(evaluate, *inputs, out_dir, config)
    on_ranks(work, start.processes, start.timeout, config.device)
