"""The captions table: one row per caption, as CSV, and info on where it came from, as JSON."""

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
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import atomic_write, read_checked_json, write_checked_json

log = logging.getLogger(__name__)

COLUMNS = ["image_id", "split", "caption", "tokens"]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
SPLIT_NAMES = ("train", "val", "test")
MIN_SPLIT_IMAGES = 10  # below this, scores mean little

# `split_digest` of Flickr8k's own three lists.
FLICKR8K_SPLIT_DIGEST = "36382357b620f0b7"
# Images of train (with restval), val and test in Karpathy's files.
KARPATHY_SIZES = {
    "flickr8k": (6000, 1000, 1000),
    "flickr30k": (29_000, 1014, 1000),
    "coco": (113_287, 5000, 5000),
}


@dataclass(frozen=True)
class SplitCaptions:
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
        """All captions of all images."""
        return [caption for captions in self.by_image.values() for caption in captions]


@dataclass(frozen=True)
class TableInfo:
    """What a score depends on: the split and the tokeniser."""

    split: (
        str  # official; Karpathy's of a data set; lists (the source's own); or "hash, not official"
    )
    split_digest: str
    tokenizer: str
    table_digest: str  # of the table's bytes
    images: dict[str, int]
    captions: int
    excluded: dict[str, int]  # reason -> captions or images that were set aside


@dataclass(frozen=True)
class CaptionTable:
    """Every caption, a row each with the columns of `COLUMNS`, and where they came from."""

    rows: pd.DataFrame
    info: TableInfo

    def split(self, name: str) -> SplitCaptions:
        """Return the tokenised captions of one split.

        Raises:
            InputError: the split has no images.
        """
        rows = self.rows[self.rows["split"] == name]
        by_image: dict[str, list[list[str]]] = {}
        words: dict[str, str] = {}  # one string a word, not one an occurrence
        for image_id, tokens in zip(rows["image_id"], rows["tokens"], strict=True):
            caption = [words.setdefault(token, token) for token in tokens.split(" ")]
            by_image.setdefault(image_id, []).append(caption)
        if not by_image:
            raise InputError(f"the captions table has no images in the split '{name}'")
        return SplitCaptions(by_image)


def split_digest(split_of: dict[str, str]) -> str:
    """Return a fingerprint of the assignment of images to splits.

    Folders do not matter where names are unique without them: a data set may come in one folder or
    in several.
    """
    by_name = {image_id.rpartition("/")[2]: split for image_id, split in split_of.items()}
    named = by_name if len(by_name) == len(split_of) else split_of
    lines = "\n".join(f"{name}\t{split}" for name, split in sorted(named.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def info_path(path: Path) -> Path:
    """Return the path of the table's info: `captions.json` beside `captions.csv`."""
    return path.with_suffix(".json")


def write_rows(path: Path, rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Write rows of (image id, split, raw caption, tokens by spaces); return the table's digest."""
    with atomic_write(path) as scratch:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for image_id, split, caption, tokens in rows:
                writer.writerow((image_id, split, to_cell(caption), to_cell(tokens)))
        return _digest(scratch.read_bytes())


def write_info(path: Path, info: TableInfo) -> None:
    """Write the info of the table at `path` beside it."""
    write_checked_json(info_path(path), asdict(info))


def read_table(path: Path) -> CaptionTable:
    """Read the captions table at `path` and its info beside it.

    Raises:
        ArtifactError: a file is missing, damaged or from another tokeniser, or the two do not
            belong together.
    """
    info = read_info(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
    if _digest(content) != info.table_digest:
        raise ArtifactError(path, f"does not belong to {info_path(path).name} beside it")
    try:
        # No value stands for a missing one: a caption may be the word 'null'.
        with warnings.catch_warnings():  # pandas warns of rows with more cells than the header
            warnings.simplefilter("error", pd.errors.ParserWarning)
            rows = pd.read_csv(
                BytesIO(content), dtype=str, keep_default_na=False, na_filter=False, index_col=False
            )
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ArtifactError(path, f"is not a captions table ({error})") from None
    if list(rows.columns) != COLUMNS:
        raise ArtifactError(path, f"does not have the columns {', '.join(COLUMNS)}")
    for column in ("caption", "tokens"):
        rows[column] = rows[column].map(_from_cell)
    invalid = rows[~rows["split"].isin(SPLIT_NAMES) | (rows["tokens"] == "")]
    if len(rows) == 0 or len(invalid):
        where = f"line {invalid.index[0] + 2}" if len(invalid) else "it is empty"
        raise ArtifactError(path, f"is not a captions table ({where})")
    return CaptionTable(rows, info)


def read_info(path: Path) -> TableInfo:
    """Read the info of the table at `path`.

    Raises:
        ArtifactError: the file is missing, damaged, or from another tokeniser.
    """
    content = read_checked_json(info_path(path))
    try:
        info = TableInfo(**content)
    except TypeError:
        raise ArtifactError(info_path(path), "does not describe a captions table") from None
    if info.tokenizer != TOKENIZER:
        raise ArtifactError(
            info_path(path), f"was made with the tokeniser {info.tokenizer}, not {TOKENIZER}"
        )
    return info


def to_cell(text: str) -> str:
    """Prefix formulas with an apostrophe, so no spreadsheet runs them (OWASP, CSV Injection)."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA_STARTS) else text


def _from_cell(cell: str) -> str:
    escaped = cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_STARTS)
    return cell[1:] if escaped else cell


def _digest(table: bytes) -> str:
    return hashlib.sha256(table).hexdigest()[:16]


def warn_small(split: str, images: int) -> None:
    """Warn if a split is too small for meaningful scores."""
    if images >= MIN_SPLIT_IMAGES:
        return
    reason = f"scores of {images} images mean little"
    if images == 1:  # each of its words is in every image, so its TF-IDF weight is 0
        reason = "CIDEr of one image is 0 by definition"
    message = (
        "the split '%s' is too small: %s; prepare.%s_fraction or the captions' own splits set it"
    )
    log.warning(message, split, reason, split)
