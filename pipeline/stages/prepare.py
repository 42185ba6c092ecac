"""Stage 2: bring captions and images together, and tokenise the captions of all splits."""

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pipeline.captions.table import (
    FLICKR8K_SPLIT_DIGEST,
    KARPATHY_SIZES,
    SPLIT_NAMES,
    TableInfo,
    split_digest,
    to_cell,
    warn_small,
    write_info,
    write_rows,
)
from pipeline.captions.tokenizer import TOKENIZER, UnspacedWords, tokenize
from pipeline.config.load import load_params
from pipeline.config.schema import PrepareConfig
from pipeline.images.archive import ImageArchive
from pipeline.images.names import first_few
from pipeline.images.unreadable import read_unreadable
from pipeline.runtime import options
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.files import atomic_write
from pipeline.sources.captions import SourceCaptions, read_captions
from pipeline.sources.matching import (
    EMPTY,
    UNCAPTIONED,
    UNREADABLE,
    Excluded,
    Matched,
    explain,
    match,
)
from pipeline.sources.records import ColumnNames

log = logging.getLogger(__name__)

# DVC does not watch what lies outside the project.
PACK_AGAIN = "if you change the data, run: dvc repro -f download"


def prepare(
    text: Path,
    images: Path,
    unreadable: Path,
    captions: Path,
    excluded: Path,
    config: PrepareConfig,
) -> None:
    """Write the captions table, beside it its info, and the list of what was set aside.

    Args:
        text: the text archive.
        images: the image archive, of which only the directory is read.
        unreadable: the list of its images that cannot be used.

    Raises:
        InputError: captions and images do not fit together, or a split has no images.
    """
    named = ColumnNames(config.image_column, config.caption_column, config.split_column)
    try:
        source = read_captions(text, format=config.format, file=config.file, named=named)
    except InputError as error:
        raise InputError(f"{error}; {PACK_AGAIN}") from None
    bad_ids = read_unreadable(unreadable)
    with ImageArchive(images, bad_ids) as archive:
        ids, other_files = set(archive.ids), archive.other_files
    matched = match(source, ids, bad_ids)
    matched, tokens_of = _tokenize(matched)
    if matched.excluded:
        reason = explain(matched.excluded, images, ids, other_files)
        _check_excluded(matched, f"{text} and {images} do not fit together: {reason}", config)
    if unused := sorted(matched.captions.keys() - (matched.splits or matched.captions).keys()):
        log.info("%s in no split: %s", pluralize(len(unused), "image"), first_few(unused))
    split_of = assign_splits(matched, config)
    _write_excluded(excluded, matched.excluded)

    def rows() -> Iterator[tuple[str, str, str, str]]:
        for image_id in sorted(split_of):
            for caption, tokens in zip(
                matched.captions[image_id], tokens_of[image_id], strict=True
            ):
                yield image_id, split_of[image_id], caption, tokens

    table_digest = write_rows(captions, rows())
    sizes = Counter(split_of.values())
    info = TableInfo(
        split=_split_source(source, split_of, matched.splits is None or config.splits == "hash"),
        split_digest=split_digest(split_of),
        tokenizer=TOKENIZER,
        table_digest=table_digest,
        images={name: sizes[name] for name in SPLIT_NAMES},
        captions=sum(len(matched.captions[image_id]) for image_id in split_of),
        excluded=_count_excluded(matched.excluded),
    )
    shares = ", ".join(f"{number} in {name}" for name, number in info.images.items())
    log.info("%d captions of %d images: %s", info.captions, len(split_of), shares)
    for name in ("val", "test"):
        warn_small(name, sizes[name])
    write_info(captions, info)


def _tokenize(matched: Matched) -> tuple[Matched, dict[str, list[str]]]:
    """Tokenise all captions; set those aside that have no words.

    Returns:
        What remains, and the tokens of each image's captions, separated by spaces.
    """
    captions: dict[str, list[str]] = {}
    tokens_of: dict[str, list[str]] = {}
    excluded = list(matched.excluded)
    unspaced = UnspacedWords()
    for image_id, own in matched.captions.items():
        tokenized = [(caption, tokenize(caption)) for caption in own]
        for caption, tokens in tokenized:
            unspaced.add(tokens)
            if tokens:
                captions.setdefault(image_id, []).append(caption)
                tokens_of.setdefault(image_id, []).append(" ".join(tokens))
            else:
                excluded.append(Excluded(EMPTY, image_id, caption))
        if image_id not in captions:
            excluded.append(Excluded(UNCAPTIONED, image_id, ""))
    unspaced.warn()
    return Matched(captions, matched.splits, excluded), tokens_of


def _check_excluded(matched: Matched, what: str, config: PrepareConfig) -> None:
    """Refuse what does not fit, or say that it is set aside.

    Raises:
        InputError: params say so, or it is too much.
    """
    images = {entry.image for entry in matched.excluded if entry.reason != EMPTY}
    captions = sum(bool(entry.caption) or entry.reason == EMPTY for entry in matched.excluded)
    shares = {
        "images": len(images) / (len(images) + len(matched.captions)),
        "captions": captions / max(1, captions + sum(map(len, matched.captions.values()))),
    }
    if not matched.captions:
        raise InputError(f"no image has a caption with words: {what}; {PACK_AGAIN}")
    # `download` has set the unreadable images aside, as its params say.
    fails = config.on_mismatch == "fail" and any(
        entry.reason != UNREADABLE for entry in matched.excluded
    )
    kind, share = max(shares.items(), key=lambda item: item[1])
    exclude = "set prepare.on_mismatch to exclude"
    if share > config.max_excluded:
        limit = f"prepare.max_excluded ({config.max_excluded:g})"
        remedy = f"raise it and {exclude}" if fails else "raise it"
        raise InputError(
            f"{what}; that is {share:.1%} of the {kind}, more than {limit}; mend the data, or "
            f"{remedy}; {PACK_AGAIN}"
        )
    if fails:
        raise InputError(f"{what}; or {exclude}; {PACK_AGAIN}")
    log.warning("set aside: %s", what)


def _count_excluded(excluded: list[Excluded]) -> dict[str, int]:
    """Count images by reason; captions of those that lost only captions."""
    images = {(entry.reason, entry.image) for entry in excluded if entry.reason != EMPTY}
    empty = [EMPTY for entry in excluded if entry.reason == EMPTY]
    return dict(sorted(Counter([*(reason for reason, _ in images), *empty]).items()))


def _write_excluded(path: Path, excluded: list[Excluded]) -> None:
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Excluded._fields)
        writer.writerows(tuple(map(to_cell, entry)) for entry in sorted(excluded))


def assign_splits(matched: Matched, config: PrepareConfig) -> dict[str, str]:
    """Assign every image that has captions to a split: by the source, else by a hash of its id.

    A hash keeps each image in its split when others are added or the order changes.

    Raises:
        InputError: a split has no images.
    """
    if matched.splits is not None and config.splits == "auto":
        hint = "add some to it in the text source, or set prepare.splits to hash"
        split_of = {
            image_id: split
            for image_id, split in matched.splits.items()
            if split and image_id in matched.captions
        }
    else:
        hint = (
            f"change prepare.val_fraction ({config.val_fraction:g}) or prepare.test_fraction "
            f"({config.test_fraction:g}), or add images"
        )
        if matched.splits is None:
            log.warning(
                "the captions have no splits: splitting by a hash of the image ids; this is not an "
                "official split"
            )
        split_of = {image_id: _split_by_hash(image_id, config) for image_id in matched.captions}
    for name in SPLIT_NAMES:
        if name not in split_of.values():
            raise InputError(f"none of {len(split_of)} images is in the split '{name}'; {hint}")
    return split_of


def _split_by_hash(image_id: str, config: PrepareConfig) -> str:
    fraction = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) / 2**64
    if fraction < config.test_fraction:
        return "test"
    return "val" if fraction < config.test_fraction + config.val_fraction else "train"


def _split_source(source: SourceCaptions, split_of: dict[str, str], hashed: bool) -> str:
    """Return what the metrics say of the split."""
    if split_digest(split_of) == FLICKR8K_SPLIT_DIGEST:
        return "official"
    if hashed:
        return "hash, not official"
    if source.format == "karpathy" and (expected := KARPATHY_SIZES.get(source.dataset)):
        sizes = Counter(split_of.values())
        if tuple(sizes[name] for name in SPLIT_NAMES) == expected:
            return f"Karpathy's of {source.dataset}"
        message = "Karpathy's %s has %s images in train, val and test; these are %s: a part of it"
        log.warning(message, source.dataset, expected, tuple(sizes[name] for name in SPLIT_NAMES))
    return "lists"


def main(
    text: Annotated[Path, typer.Option(help="The text archive.")] = Path("data/text.zip"),
    images: options.Images = Path("data/images.zip"),
    unreadable: options.Unreadable = Path("data/unreadable_images.csv"),
    captions: Annotated[
        Path, typer.Option(help="The captions table to write (CSV; its info goes beside it).")
    ] = Path("data/captions.csv"),
    excluded: Annotated[
        Path, typer.Option(help="The list of what was set aside, to write (CSV).")
    ] = Path("data/excluded.csv"),
    params: options.Params = Path("params.yaml"),
) -> None:
    """Tokenise every caption into one table."""
    prepare(text, images, unreadable, captions, excluded, load_params(params, PrepareConfig))
