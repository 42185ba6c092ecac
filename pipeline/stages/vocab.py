"""Stage 5: build the vocabulary from the training captions."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import read_table
from pipeline.captions.vocabulary import SPECIAL, build_vocabulary, write_vocabulary
from pipeline.config.load import load_params
from pipeline.config.schema import VocabConfig
from pipeline.runtime import options
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)


def make_vocabulary(captions: Path, out: Path, config: VocabConfig) -> None:
    """Write the vocabulary of the training captions to `out`.

    Raises:
        InputError: the table cannot be used, or no word is frequent enough.
    """
    table = read_table(captions)
    train_captions = table.split("train").captions
    vocabulary = build_vocabulary(train_captions, config.min_count)
    if len(vocabulary) == len(SPECIAL):
        raise InputError(f"no word occurs {config.min_count} times; lower vocab.min_count")
    write_vocabulary(out, vocabulary, config.min_count, table.info.table_digest)
    tokens = [token for caption in train_captions for token in caption]
    unknown = sum(token not in vocabulary.ids for token in tokens) / len(tokens)
    log.info("%d words; %.1f %% of the training tokens are <unk>", len(vocabulary), 100 * unknown)


def main(
    captions: options.Captions = Path("data/captions.csv"),
    out: Annotated[Path, typer.Option(help="The vocabulary to write (JSON).")] = Path(
        "data/vocabulary.json"
    ),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Choose the vocabulary from the training captions."""
    make_vocabulary(captions, out, load_params(params, VocabConfig))
