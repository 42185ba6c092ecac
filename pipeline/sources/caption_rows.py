"""Captions as a table, as Kaggle's data sets have them: a header, then a row a caption."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.images.names import is_image_name
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

# What the two columns are called, the surest names first.
IMAGE = "image image_name file_name filename image_path path image_id file id".split()
CAPTION = "caption comment captions comments text sentence description".split()
EXPECTED = "image,caption"
QUOTES = {",": csv.QUOTE_MINIMAL, ";": csv.QUOTE_MINIMAL, "\t": csv.QUOTE_MINIMAL}
QUOTES["|"] = csv.QUOTE_NONE  # as Flickr30k has it, where a quotation mark is one


@dataclass(frozen=True)
class Columns:
    """Where in a row the image's name and the caption stand."""

    delimiter: str
    blanks: bool  # one follows each delimiter
    count: int
    image: int
    caption: int


def read_rows(lines: Iterator[str], where: str) -> Iterator[tuple[str, str, str]]:
    """Each row's image, its caption, and where it stands.

    Raises:
        InputError: the header names no such columns, or a row does not fit it.
    """
    numbered = enumerate(lines, start=1)
    header = next((line for _, line in numbered if line.strip()), "")
    columns = _columns(header, where)
    for number, line in numbered:
        place = f"{where}, line {number}"
        cells = _cells(line, columns, place)
        if not cells:
            continue
        if columns.caption == columns.count - 1 < len(cells):
            # An unquoted comma belongs to the caption.
            after = columns.delimiter + " " * columns.blanks
            cells = [*cells[: columns.caption], after.join(cells[columns.caption :])]
        if len(cells) != columns.count or not cells[columns.caption] + cells[columns.image]:
            raise InputError(
                f"{place}: expected the {columns.count} columns '{header.strip()}', found "
                f"{len(cells)}; a caption with a '{columns.delimiter}' in it needs quotation marks"
            )
        yield cells[columns.image].strip(), cells[columns.caption], place


def _columns(header: str, where: str) -> Columns:
    for delimiter in QUOTES:
        parts = header.split(delimiter)
        names = [part.strip().strip('"').strip().lower() for part in parts]
        image, caption = (_first(known, names) for known in (IMAGE, CAPTION))
        if image is not None and caption is not None:
            if (names[image], names[caption]) != ("image", "caption"):
                log.info(
                    "%s: images are taken from the column '%s', captions from '%s'",
                    *(where, names[image], names[caption]),
                )
            blanks = all(part.startswith(" ") for part in parts[1:])
            return Columns(delimiter, blanks, len(names), image, caption)
    if is_image_name(header.split(",")[0].strip()):
        raise InputError(
            f"{where} has no header, it begins with {header[:60]!r}; put the line '{EXPECTED}' "
            "above that"
        )
    raise InputError(
        f"{where}: expected the header '{EXPECTED}', found {header[:60]!r}; call the column of the "
        "images 'image' and that of the captions 'caption', a row a caption"
    )


def _first(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _cells(line: str, columns: Columns, place: str) -> list[str]:
    """A line's cells; none of an empty line.

    Raises:
        InputError: its quotation marks do not match.
    """
    # To csv a carriage return inside a line would end the row.
    rows = csv.reader(
        [line.replace("\r", " ").rstrip()],
        delimiter=columns.delimiter,
        quoting=QUOTES[columns.delimiter],  # type: ignore[arg-type]
        skipinitialspace=columns.blanks,
        strict=True,
    )
    try:
        return next(rows, [])
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(
                f"{place}: a quotation mark opens and does not close on this line; close it, and "
                "write a caption on one line"
            ) from None
        raise InputError(
            f'{place}: {error}; inside quotation marks write "" for a quotation mark'
        ) from None
