"""Stage 6: the training images as neighbours, for consensus reranking."""

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipeline.captions.table import read_table
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.dataset.feature_cache import read_features
from pipeline.reranking.neighbors import build_neighbors, mean_vectors, write_neighbors
from pipeline.runtime import options
from pipeline.runtime.errors import pluralize
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

IMAGES = 100  # read together


def make_neighbors(features: Path, captions: Path, vocabulary: Path, out: Path) -> None:
    """Write the training images' vectors and captions to `out`.

    Raises:
        InputError: an input cannot be used, or the cache lacks images.
    """
    table, cache = read_table(captions), read_features(features)
    words = read_vocabulary(vocabulary, table.info.table_digest)
    split = table.split("train")
    rows = cache.row_indices(split.ids)
    batches = progress_bar(range(0, len(rows), IMAGES), label="neighbors", unit="batch")
    vectors = [
        mean_vectors(torch.from_numpy(cache.read_verified(rows[begin : begin + IMAGES])).float())
        for begin in batches
    ]
    token_ids = [[words.encode(caption) for caption in own] for own in split.references]
    facts = (words, cache.recipe, table.info.split_digest)
    neighbors = build_neighbors(torch.cat(vectors), token_ids, *facts)
    write_neighbors(out, neighbors)
    log.info("%s as neighbours", pluralize(len(rows), "training image"))


def main(
    features: options.Features = Path("features/features.h5"),
    captions: options.Captions = Path("data/captions.csv"),
    vocabulary: options.Vocabulary = Path("data/vocabulary.json"),
    out: Annotated[Path, typer.Option(help="The neighbours to write.")] = Path(
        "models/neighbors.safetensors"
    ),
) -> None:
    """Collect the training images for consensus reranking."""
    make_neighbors(features, captions, vocabulary, out)
