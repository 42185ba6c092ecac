"""Stage 8: captions of a split that the model has not seen, and their scores."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.captions.table import read_summary, read_table, select_split, warn_small
from pipeline.config import read
from pipeline.config.evaluate import EvaluateConfig
from pipeline.dataset.feature_dataset import FeatureDataset
from pipeline.decoders.captioner_file import require_same_split
from pipeline.evaluation.diversity import repeats, variety
from pipeline.evaluation.ensemble import build_ensemble, read_models
from pipeline.evaluation.reports import (
    score_table,
    write_captions,
    write_lengths,
    write_metrics,
    write_references,
    write_scores,
)
from pipeline.features.feature_cache import read_features
from pipeline.generation.beam_search import BeamSearch, BeamSearchConfig
from pipeline.generation.generate import generate_captions
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
from pipeline.runtime.checkpoint import discard_if_complete
from pipeline.runtime.device import resolve_device, seed_everything

log = logging.getLogger(__name__)

MANY = 0.2  # of captions, that do what is forbidden


def evaluate(
    models: Sequence[Path],
    features: Path,
    table: Path,
    summary: Path,
    captions: Path,
    references: Path,
    scores: Path,
    lengths: Path,
    metrics: Path,
    config: EvaluateConfig,
) -> None:
    """Caption a split and write `captions`, the `references` that they are scored against, `scores`
    (a row an image), `lengths` and `metrics`.

    Args:
        models: one, or several that speak as one.

    Raises:
        InputError: an input cannot be used, or the features are not those of the model.
    """
    device = resolve_device(config.device)
    seed_everything(0, config.deterministic)
    cache = read_features(features)
    trained = read_models(models, device)
    decoder = build_ensemble(trained, cache.recipe, where=str(features))
    for path in models:
        discard_if_complete(path)
    about = read_summary(summary)
    for path, model in zip(models, trained, strict=True):
        require_same_split(model, about.split_digest, where=str(path))
    everything = read_table(table, about)
    split = select_split(everything, config.split)
    warn_small(config.split, len(split.ids))

    search = beam_search_config(config, max(model.max_length for model in trained))
    made = generate_captions(
        BeamSearch(decoder, search),
        FeatureDataset(cache, split.ids, device),
        trained[0].vocabulary,
        default_batch_size(device) if config.batch_size == "auto" else config.batch_size,
    )
    learnt = select_split(everything, "train").captions
    warn_blocked(learnt, config.block_ngram)
    constant = best_constant_caption(learnt, split.references)
    yardsticks: list[dict[str, Any]] = [
        {
            "name": "constant",
            "caption": " ".join(constant),
            **compute_scores([constant] * len(made), split.references),
        }
    ]
    if human := human_scores(split.references):
        yardsticks.append({"name": "human", **human})
    content: dict[str, Any] = {
        **compute_scores(made, split.references),
        **variety(made),
        **({"backbone": "UNTRAINED"} if cache.recipe.untrained else {}),
        "split": f"{config.split} ({about.split})",
        "yardsticks": yardsticks,
        "about": [
            {
                "scale": SCALE,
                "tokenizer": about.tokenizer,
                "split_digest": about.split_digest,
                "images": len(made),
                "references": sum(map(len, split.references)) / len(made),
                "features": cache.recipe.label,
                "models": len(models),
                "max_length": search.max_length,
                "at_max_length": sum(len(one) == search.max_length for one in made),
            }
        ],
    }
    counts = bleu_counts(made, split.references).T
    write_captions(captions, split.ids, made)
    write_references(references, split.ids, split.references)
    write_scores(
        scores,
        {
            "image_id": split.ids,
            "bleu_4_smoothed": sentence_bleu_4(made, split.references),
            "cider": cider(made, split.references)[1],
            "rouge_l": rouge_l(made, split.references)[1],
            **dict(zip(COUNT_NAMES, counts, strict=True)),
        },
    )
    write_lengths(lengths, made, split.references)
    write_metrics(metrics, content, beside=[captions, references, scores])
    log.info("%s, %s\n%s", content["split"], cache.recipe.label, score_table(content))
    warn_cut_off(made, search.max_length, max(model.max_length for model in trained))
    if content["cider"] < yardsticks[0]["cider"]:
        log.warning("CIDEr is below the constant caption's: the model tells nothing of the images")


def warn_cut_off(made: Sequence[Sequence[str]], longest: int, learnt: int) -> None:
    """Where captions may not get as long as those that the model learnt."""
    there = sum(len(caption) == longest for caption in made)
    if longest < learnt and there > MANY * len(made):
        log.warning(
            "%d of %d captions have the %d words that evaluate.max_length allows and may be cut "
            "off; the model learnt captions of up to %d: set it to auto",
            *(there, len(made), longest, learnt),
        )


def warn_blocked(learnt: Sequence[Sequence[str]], order: int) -> None:
    """Long captions say pairs of words twice as a matter of course."""
    share = sum(repeats(caption, order) for caption in learnt) / len(learnt) if order else 0.0
    if share > MANY:
        log.warning(
            "evaluate.block_ngram: %d forbids what %.0f %% of the training captions do: to say %d "
            "words in a row twice; raise it, or set it to 0",
            *(order, 100 * share, order),
        )


def beam_search_config(config: EvaluateConfig, longest: int) -> BeamSearchConfig:
    """
    Args:
        longest: words of a caption where the params leave them to the model.
    """
    return BeamSearchConfig(
        beam=config.beam,
        length_penalty=config.length_penalty,
        max_length=longest if config.max_length == "auto" else config.max_length,
        block_ngram=config.block_ngram,
        allow_unk=config.allow_unk,
        groups=config.groups,
        diversity=config.diversity,
    )


def default_batch_size(device: torch.device) -> int:
    """Images that are searched at once: a GPU wants work for all its cores."""
    return 100 if device.type == "cpu" else 500


def main(
    model: Annotated[
        list[Path], typer.Option(help="The trained model; several speak as an ensemble.")
    ],
    features: Annotated[Path, typer.Option(help="The cached features.")],
    table: Annotated[Path, typer.Option(help="The captions table.")],
    summary: Annotated[Path, typer.Option(help="Its summary.")],
    captions: Annotated[Path, typer.Option(help="Where to write the captions (COCO results).")],
    references: Annotated[Path, typer.Option(help="Where to write their references (JSON).")],
    scores: Annotated[Path, typer.Option(help="Where to write a row of scores an image (CSV).")],
    lengths: Annotated[Path, typer.Option(help="Where to write caption lengths (CSV).")],
    metrics: Annotated[Path, typer.Option(help="Where to write the metrics (JSON).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Caption a split and score the captions."""
    evaluate(
        *(model, features, table, summary, captions, references, scores, lengths, metrics),
        read(params, EvaluateConfig),
    )
