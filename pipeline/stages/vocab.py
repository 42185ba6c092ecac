"""Stage 5: the words that the decoder may say, from the training captions alone."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import read_summary, read_table, select_split
from pipeline.captions.vocabulary import SPECIAL, build_vocabulary, write_vocabulary
from pipeline.config import read
from pipeline.config.vocab import VocabConfig
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)


def make_vocabulary(table: Path, summary: Path, out: Path, config: VocabConfig) -> None:
    """Write the vocabulary of the training captions to `out`.

    Raises:
        InputError: the table cannot be used, or no word is frequent enough.
    """
    about = read_summary(summary)
    captions = select_split(read_table(table, about), "train").captions
    vocabulary = build_vocabulary(captions, config.min_count)
    if len(vocabulary) == len(SPECIAL):
        raise InputError(f"no word is seen {config.min_count} times; lower vocab.min_count")
    write_vocabulary(out, vocabulary, config.min_count, about.table_digest)
    unknown = sum(token not in vocabulary.ids for caption in captions for token in caption)
    share = 100 * unknown / sum(len(caption) for caption in captions)
    log.info("%d words; %.1f %% of the training tokens are <unk>", len(vocabulary), share)


def main(
    table: Annotated[Path, typer.Option(help="The captions table.")],
    summary: Annotated[Path, typer.Option(help="The table's summary.")],
    out: Annotated[Path, typer.Option(help="Where to write the vocabulary (JSON).")],
    params: Annotated[Path, typer.Option(help="The params file.")] = Path("params.yaml"),
) -> None:
    """Choose the vocabulary from the training captions."""
    make_vocabulary(table, summary, out, read(params, VocabConfig))
