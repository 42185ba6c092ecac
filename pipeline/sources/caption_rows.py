"""Read captions from a table (CSV, TSV): a header, then one row each."""

import ast
import csv
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.images.names import is_image_name
from pipeline.runtime.errors import InputError
from pipeline.sources.records import CAPTION_COLUMNS, CaptionRecord, ColumnNames
from pipeline.sources.text_archive import is_content

log = logging.getLogger(__name__)

EXPECTED_HEADER = "image,caption"
# caption_1, caption_2, …: several captions per row.
NUMBERED = re.compile(rf"({'|'.join(CAPTION_COLUMNS)})[ _-]?\d+")
# Quoting by delimiter. Flickr30k has `|`, and its quotation marks are part of the caption.
QUOTING = dict.fromkeys(",;\t", csv.QUOTE_MINIMAL) | {"|": csv.QUOTE_NONE}
# One row of Flickr30k's results.csv lacks the second bar.
MISSING_BAR = re.compile(r"(\d+)\s+(.*)", re.DOTALL)


@dataclass(frozen=True)
class Columns:
    """The layout of a row."""

    delimiter: str
    spaces: bool  # whether a space follows each delimiter
    names: tuple[str, ...]  # in lower case
    image: int  # the column of the image's name
    captions: tuple[int, ...]  # none in a table of splits
    split: int | None


def find_columns(header: str, named: ColumnNames) -> Columns | None:
    """Return the layout that a header tells; None if it has no column of images.

    A table has columns of captions, a column of splits, or both.
    """
    for delimiter in QUOTING:
        parts = header.split(delimiter)
        names = [part.strip().strip('"').strip().lower() for part in parts]
        image = _first_known(named.known_images(), names)
        captions = _caption_columns(names, named)
        split = _first_known(named.known_splits(), names)
        if image is not None and (captions or split is not None):
            spaces = all(part.startswith(" ") for part in parts[1:])
            return Columns(delimiter, spaces, tuple(names), image, captions, split)
    return None


def read_rows(lines: Iterator[str], where: str, named: ColumnNames) -> Iterator[CaptionRecord]:
    """Yield the captions of each row; one without a caption, where a row only has a split.

    Raises:
        InputError: the header has no such columns, or a row does not match the header.
    """
    numbered = enumerate(lines, start=1)
    header = next((line for _, line in numbered if is_content(line)), "")
    columns = find_columns(header, named)
    if columns is None:
        raise InputError(_explain_header(header, where, named))
    _log_columns(columns, where)
    for number, line in numbered:
        cells = _cells(line, columns, f"{where}, line {number}")
        if not cells:
            continue
        cells = _repair(cells, columns)
        if len(cells) != len(columns.names) or not any(
            cells[column] for column in (columns.image, *columns.captions)
        ):
            raise InputError(
                f"{where}, line {number}: expected the {len(columns.names)} columns "
                f"'{header.strip()}', found {len(cells)}; quote captions that contain "
                f"'{columns.delimiter}'"
            )
        image = cells[columns.image].strip()
        split = None if columns.split is None else cells[columns.split].strip()
        captions: list[str | None] = [
            caption for column in columns.captions for caption in _captions_of(cells[column])
        ]
        if len(captions) > 1:  # an image may have fewer captions than others
            captions = [caption for caption in captions if caption and caption.strip()] or [""]
        for caption in captions or [None]:
            yield CaptionRecord(image, caption, split, number)


def _captions_of(cell: str) -> list[str]:
    """The captions of a cell: those of a list, as JSON or Python writes it, or the cell itself."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            captions = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
        if isinstance(captions, list) and all(isinstance(caption, str) for caption in captions):
            return captions or [""]
    return [cell]


def _caption_columns(names: Sequence[str], named: ColumnNames) -> tuple[int, ...]:
    if named.captions is not None:
        wanted = [name.lower() for name in named.captions]
        return tuple(map(names.index, wanted)) if set(wanted) <= set(names) else ()
    if (single := _first_known(CAPTION_COLUMNS, names)) is not None:
        return (single,)
    return tuple(column for column, name in enumerate(names) if NUMBERED.fullmatch(name))


def _first_known(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next((names.index(name.lower()) for name in known if name.lower() in names), None)


def _log_columns(columns: Columns, where: str) -> None:
    """Say which columns were taken, unless they are the plain ones."""
    image = columns.names[columns.image]
    captions = [columns.names[column] for column in columns.captions]
    if captions and [image, *captions] != ["image", "caption"]:
        message = "%s: reading images from the column '%s', captions from '%s'"
        log.info(message, where, image, ", ".join(captions))


def _explain_header(header: str, where: str, named: ColumnNames) -> str:
    if named != ColumnNames():
        wanted = [named.image, *(named.captions or ()), named.split]
        names = ", ".join(repr(name) for name in wanted if name)
        return f"{where}: expected the columns {names} of params, found the header {header[:60]!r}"
    if is_image_name(re.split(r"[,;\t|]", header)[0].strip().strip('"')):
        return (
            f"{where} has no header, it begins with {header[:60]!r}; add the line "
            f"'{EXPECTED_HEADER}' above that"
        )
    return (
        f"{where}: expected the header '{EXPECTED_HEADER}', found {header[:60]!r}; name the column "
        "of the images 'image' and that of the captions 'caption', with one row per caption, or "
        "name your columns in prepare.image_column and prepare.caption_column"
    )


def _repair(cells: list[str], columns: Columns) -> list[str]:
    """Mend a row whose last column is the caption and has a delimiter, or lacks the one before."""
    last = len(columns.names) - 1
    if columns.captions != (last,):
        return cells
    if len(cells) > last + 1:  # an unquoted delimiter is part of the caption
        delimiter = columns.delimiter + " " * columns.spaces
        return [*cells[:last], delimiter.join(cells[last:])]
    match = MISSING_BAR.fullmatch(cells[-1].strip())
    if match and len(cells) == last and columns.delimiter == "|":
        return [*cells[:-1], *match.groups()]
    return cells


def _cells(line: str, columns: Columns, where: str) -> list[str]:
    """Return a line's cells, [] for an empty line.

    Raises:
        InputError: its quotation marks do not match.
    """
    # The csv module would end the row at a carriage return inside a line.
    rows = csv.reader(
        [line.replace("\r", " ").rstrip()],
        delimiter=columns.delimiter,
        quoting=QUOTING[columns.delimiter],  # type: ignore[arg-type]
        skipinitialspace=columns.spaces,
        strict=True,
    )
    try:
        return next(rows, [])
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(
                f"{where}: a quotation mark is not closed on this line; close it, and write each "
                "caption on one line"
            ) from None
        raise InputError(
            f'{where}: {error}; inside quotation marks write "" for a quotation mark'
        ) from None
