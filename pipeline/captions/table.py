"""The captions table: a row per caption, as CSV, and a summary of where it came from, as JSON."""

import csv
import hashlib
import logging
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd

from pipeline.captions.tokenizer import TOKENIZER
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import atomic_write, read_sealed, write_sealed

log = logging.getLogger(__name__)

COLUMNS = ["image_id", "split", "caption", "tokens"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
SPLIT_NAMES = ("train", "val", "test")
FEW = 10  # images, of which scores say little

# `split_digest` of Flickr8k's own three lists.
FLICKR8K_SPLIT_DIGEST = "ea848140f1f931a6"


@dataclass(frozen=True)
class Captions:
    """Tokenised captions of one split, by image id, in the table's order."""

    by_image: dict[str, list[list[str]]]

    @property
    def ids(self) -> list[str]:
        return list(self.by_image)

    @property
    def references(self) -> list[list[list[str]]]:
        """The captions of each image, in the order of `ids`."""
        return list(self.by_image.values())

    @property
    def captions(self) -> list[list[str]]:
        """All captions, of whichever image."""
        return [caption for captions in self.by_image.values() for caption in captions]


@dataclass(frozen=True)
class Summary:
    """What a score must be read with: which split it is, and which tokens."""

    split: str  # official; lists (the text archive's own); hash, not official (made from the ids)
    split_digest: str
    tokenizer: str
    table_digest: str  # of the table's bytes
    images: dict[str, int]
    captions: int
    empty_captions: int


def split_digest(split_of: dict[str, str]) -> str:
    """A fingerprint of which image is in which split."""
    lines = "\n".join(f"{image_id}\t{split}" for image_id, split in sorted(split_of.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def write_table(path: Path, rows: Iterable[tuple[str, str, str, list[str]]]) -> str:
    """Write rows of (image id, split, raw caption, tokens) as they come; the digest of what is
    written."""
    with atomic_write(path) as scratch:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for image_id, split, caption, tokens in rows:
                table.writerow((image_id, split, _to_cell(caption), _to_cell(" ".join(tokens))))
        return _digest(scratch.read_bytes())


def read_table(path: Path, about: Summary) -> pd.DataFrame:
    """
    Args:
        about: the summary that was written with it.

    Raises:
        InputError: the file is absent, not what was written, or no captions table.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the stage 'captions' makes it") from None
    if _digest(content) != about.table_digest:
        raise InputError(f"{path} is not the table that its summary is of; run 'captions' again")
    try:
        # No value means 'missing' here: a caption may well be the word 'null'.
        with warnings.catch_warnings():  # of rows with more cells than the header
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                BytesIO(content), dtype=str, keep_default_na=False, na_filter=False, index_col=False
            )
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise InputError(f"{path} is no captions table ({error}); run 'captions' again") from None
    if list(table.columns) != COLUMNS:
        raise InputError(f"{path} has other columns than {', '.join(COLUMNS)}; run 'captions'")
    for column in ("caption", "tokens"):
        table[column] = table[column].map(_from_cell)
    wrong = table[~table["split"].isin(SPLIT_NAMES) | (table["tokens"] == "")]
    if len(table) == 0 or len(wrong):
        where = f"line {wrong.index[0] + 2}" if len(wrong) else "it is empty"
        raise InputError(f"{path} is no captions table ({where}); run 'captions' again")
    return table


def _to_cell(text: str) -> str:
    """A text that no spreadsheet computes: what begins like a formula gets an apostrophe
    (OWASP, CSV Injection)."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def _from_cell(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def _digest(table: bytes) -> str:
    return hashlib.sha256(table).hexdigest()[:16]


def select_split(table: pd.DataFrame, split: str) -> Captions:
    """The tokenised captions of one split."""
    rows = table[table["split"] == split]
    by_image: dict[str, list[list[str]]] = {}
    for image_id, tokens in zip(rows["image_id"], rows["tokens"], strict=True):
        by_image.setdefault(image_id, []).append(tokens.split(" "))
    if not by_image:
        raise InputError(f"the captions table has no images in the split '{split}'")
    return Captions(by_image)


def warn_small(split: str, images: int) -> None:
    """Say so where a split is too small to choose or to report by."""
    if images >= FEW:
        return
    said = f"scores of {images} images say little"
    if images == 1:  # its words are in all images there are, so they weigh nothing
        said = "CIDEr of one image is 0 by definition, whatever is said of it"
    log.warning(
        "the split '%s' is too small: %s; captions.%s_fraction or the archive's list decides",
        *(split, said, split),
    )


def write_summary(path: Path, summary: Summary) -> None:
    write_sealed(path, asdict(summary))


def read_summary(path: Path) -> Summary:
    """
    Raises:
        InputError: the file is absent, damaged, or of another tokeniser than this code's.
    """
    content = read_sealed(path, made_by="captions")
    try:
        summary = Summary(**content)
    except TypeError:
        raise InputError(f"{path} is no summary of captions; run 'captions' again") from None
    if summary.tokenizer != TOKENIZER:
        raise InputError(
            f"{path} was made with the tokeniser {summary.tokenizer}, this is {TOKENIZER}; "
            "run 'captions' again"
        )
    return summary
