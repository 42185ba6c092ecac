"""Stage 8: captions of a split that the model has not seen, and their scores."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.config import read
from pipeline.config.evaluate import EvaluateConfig
from pipeline.device import choose_device, make_repeatable
from pipeline.model.captioning import caption_features
from pipeline.model.ensemble import read_models, speaker
from pipeline.model.features import PictureFeatures
from pipeline.model.search import BeamSearch, Search
from pipeline.scoring.bleu import COUNT_NAMES
from pipeline.scoring.metrics import SCALE, bleu_counts, cider, each_bleu_4, headline, rouge_l
from pipeline.scoring.variety import repeats, variety
from pipeline.scoring.yardsticks import best_constant, human_scores
from pipeline.store.checkpoint import acknowledge
from pipeline.store.features import read_features
from pipeline.store.model import require_same_split
from pipeline.store.results import (
    score_table,
    write_captions,
    write_lengths,
    write_metrics,
    write_references,
    write_scores,
)
from pipeline.store.table import captions_of, read_summary, read_table, warn_small

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
    (a row a picture), `lengths` and `metrics`.

    Args:
        models: one, or several that speak as one.

    Raises:
        InputError: an input cannot be used, or the features are not those of the model.
    """
    device = choose_device(config.device)
    make_repeatable(0, config.deterministic)
    cache = read_features(features)
    trained = read_models(models, device)
    decoder = speaker(trained, cache.recipe, where=str(features))
    for path in models:
        acknowledge(path)
    about = read_summary(summary)
    for path, model in zip(models, trained, strict=True):
        require_same_split(model, about.split_digest, where=str(path))
    everything = read_table(table, about)
    split = captions_of(everything, config.split)
    warn_small(config.split, len(split.ids))

    search = search_of(config, max(model.max_length for model in trained))
    made = caption_features(
        BeamSearch(decoder, search),
        PictureFeatures(cache, split.ids, device),
        trained[0].vocabulary,
        auto_batch(device) if config.batch_size == "auto" else config.batch_size,
    )
    learnt = captions_of(everything, "train").captions
    warn_blocked(learnt, config.block_ngram)
    constant = best_constant(learnt, split.references)
    yardsticks: list[dict[str, Any]] = [
        {
            "name": "constant",
            "caption": " ".join(constant),
            **headline([constant] * len(made), split.references),
        }
    ]
    if human := human_scores(split.references):
        yardsticks.append({"name": "human", **human})
    content: dict[str, Any] = {
        **headline(made, split.references),
        **variety(made),
        **({"backbone": "UNTRAINED"} if cache.recipe.untrained else {}),
        "split": f"{config.split} ({about.split})",
        "yardsticks": yardsticks,
        "about": [
            {
                "scale": SCALE,
                "tokenizer": about.tokenizer,
                "split_digest": about.split_digest,
                "pictures": len(made),
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
            "bleu_4_smoothed": each_bleu_4(made, split.references),
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
        log.warning(
            "CIDEr is below the constant caption's: the model tells nothing of the pictures"
        )


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


def search_of(config: EvaluateConfig, longest: int) -> Search:
    """
    Args:
        longest: words of a caption where the params leave them to the model.
    """
    return Search(
        beam=config.beam,
        length_penalty=config.length_penalty,
        max_length=longest if config.max_length == "auto" else config.max_length,
        block_ngram=config.block_ngram,
        allow_unk=config.allow_unk,
        groups=config.groups,
        diversity=config.diversity,
    )


def auto_batch(device: torch.device) -> int:
    """Pictures that are searched at once: a GPU wants work for all its cores."""
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
    scores: Annotated[Path, typer.Option(help="Where to write a row of scores a picture (CSV).")],
    lengths: Annotated[Path, typer.Option(help="Where to write caption lengths (CSV).")],
    metrics: Annotated[Path, typer.Option(help="Where to write the metrics (JSON).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Caption a split and score the captions."""
    evaluate(
        *(model, features, table, summary, captions, references, scores, lengths, metrics),
        read(params, EvaluateConfig),
    )
