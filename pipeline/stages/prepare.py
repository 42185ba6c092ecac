"""Stage 2: tokenise the captions of all splits into one table."""

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import (
    FLICKR8K_SPLIT_DIGEST,
    SPLIT_NAMES,
    TableInfo,
    split_digest,
    warn_small,
    write_info,
    write_rows,
)
from pipeline.captions.tokenizer import TOKENIZER, tokenize
from pipeline.config.load import load_params
from pipeline.config.schema import PrepareConfig
from pipeline.runtime import options
from pipeline.runtime.errors import InputError
from pipeline.sources.flickr8k import ORPHAN_CAPTIONS, TextArchive, read_text_archive

log = logging.getLogger(__name__)

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
MAX_MEAN_LETTERS = 6.0  # per token of these scripts: words have fewer letters, sentences more


def prepare(text: Path, captions: Path, config: PrepareConfig) -> None:
    """Write the captions table, and beside it its info.

    Raises:
        InputError: a split has no images, or an image of one has no words in its captions.
    """
    archive = read_text_archive(text)
    split_of = assign_splits(archive, config)
    written = empty = 0
    unspaced = letters = 0  # tokens of such scripts, and their letters

    def rows() -> Iterator[tuple[str, str, str, list[str]]]:  # a generator: tokens need memory
        nonlocal written, empty, unspaced, letters
        for image_id in sorted(split_of):
            before = written
            for caption in archive.captions.get(image_id, []):
                tokens = tokenize(caption)
                for parts in filter(None, map(UNSPACED.findall, tokens)):
                    unspaced, letters = unspaced + 1, letters + len("".join(parts))
                if tokens:
                    yield image_id, split_of[image_id], caption, tokens
                    written += 1
                else:
                    log.warning("skipped a caption of %s without words", image_id)
                    empty += 1
            if written == before:
                raise InputError(f"{text}: no caption of {image_id!r} has any words")

    table_digest = write_rows(captions, rows())
    images = {name: list(split_of.values()).count(name) for name in SPLIT_NAMES}
    sizes = ", ".join(f"{number} in {name}" for name, number in images.items())
    log.info("%d captions of %d images: %s", written, len(split_of), sizes)
    for name in ("val", "test"):
        warn_small(name, images[name])
    if letters > MAX_MEAN_LETTERS * unspaced:
        message = "%d words without spaces have %.1f letters on average, so they are whole "
        message += "sentences; put spaces between the words first (see docs/params.md)"
        log.warning(message, unspaced, letters / unspaced)
    digest = split_digest(split_of)
    split_source = "hash, not official" if archive.splits is None else "lists"
    write_info(
        captions,
        TableInfo(
            split="official" if digest == FLICKR8K_SPLIT_DIGEST else split_source,
            split_digest=digest,
            tokenizer=TOKENIZER,
            table_digest=table_digest,
            images=images,
            captions=written,
            empty_captions=empty,
        ),
    )


def assign_splits(archive: TextArchive, config: PrepareConfig) -> dict[str, str]:
    """Assign every image to a split: by the archive's lists, else by a hash of its id.

    A hash keeps each image in its split when others are added or the order changes.
    """
    if archive.splits is not None:
        hint = "add some to its list in the text archive"
        split_of = {image_id: split for split, ids in archive.splits.items() for image_id in ids}
    else:
        hint = (
            f"change prepare.val_fraction ({config.val_fraction:g}) or prepare.test_fraction "
            f"({config.test_fraction:g}), or add images"
        )
        log.warning(
            "no split lists: splitting by a hash of the ids; this is not the official split"
        )
        split_of = {
            image_id: _split_by_hash(image_id, config)
            for image_id in archive.captions
            if image_id not in ORPHAN_CAPTIONS
        }
    for name in SPLIT_NAMES:
        if name not in split_of.values():
            raise InputError(f"none of {len(split_of)} images is in the split '{name}'; {hint}")
    return split_of


def _split_by_hash(image_id: str, config: PrepareConfig) -> str:
    fraction = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) / 2**64
    if fraction < config.test_fraction:
        return "test"
    return "val" if fraction < config.test_fraction + config.val_fraction else "train"


def main(
    text: Annotated[Path, typer.Option(help="The text archive.")] = Path("data/text.zip"),
    captions: Annotated[
        Path, typer.Option(help="The captions table to write (CSV; its info goes beside it).")
    ] = Path("data/captions.csv"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Tokenise every caption into one table."""
    prepare(text, captions, load_params(params, PrepareConfig))
