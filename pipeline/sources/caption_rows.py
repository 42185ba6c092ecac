"""Parse captions from a table as Kaggle's data sets have them: a header, then one row each."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.images.names import is_image_name
from pipeline.runtime.errors import InputError

log = logging.getLogger(__name__)

# Known names of the two columns, the least ambiguous first.
IMAGE_NAMES = "image image_name file_name filename image_path path image_id file id".split()
CAPTION_NAMES = "caption comment captions comments text sentence description".split()
EXPECTED_HEADER = "image,caption"
# Quoting by delimiter. Flickr30k has `|`, and its quotation marks are part of the caption.
QUOTING = dict.fromkeys(",;\t", csv.QUOTE_MINIMAL) | {"|": csv.QUOTE_NONE}


@dataclass(frozen=True)
class Columns:
    """The layout of a row."""

    delimiter: str
    spaces: bool  # whether a space follows each delimiter
    count: int
    image: int  # the column of the image's name
    caption: int


def read_rows(lines: Iterator[str], where: str) -> Iterator[tuple[str, str, str]]:
    """Yield each row's image name, caption, and location for error messages.

    Raises:
        InputError: the header has no such columns, or a row does not match the header.
    """
    numbered = enumerate(lines, start=1)
    header = next((line for _, line in numbered if line.strip()), "")
    columns = _columns(header, where)
    for number, line in numbered:
        line_where = f"{where}, line {number}"
        cells = _cells(line, columns, line_where)
        if not cells:
            continue
        if columns.caption == columns.count - 1 < len(cells):
            # An unquoted delimiter is part of the caption.
            delimiter = columns.delimiter + " " * columns.spaces
            cells = [*cells[: columns.caption], delimiter.join(cells[columns.caption :])]
        if len(cells) != columns.count or not cells[columns.caption] + cells[columns.image]:
            raise InputError(
                f"{line_where}: expected the {columns.count} columns '{header.strip()}', found "
                f"{len(cells)}; quote captions that contain '{columns.delimiter}'"
            )
        yield cells[columns.image].strip(), cells[columns.caption], line_where


def _columns(header: str, where: str) -> Columns:
    for delimiter in QUOTING:
        parts = header.split(delimiter)
        names = [part.strip().strip('"').strip().lower() for part in parts]
        image, caption = (_first_known(known, names) for known in (IMAGE_NAMES, CAPTION_NAMES))
        if image is not None and caption is not None:
            if (names[image], names[caption]) != ("image", "caption"):
                message = "%s: reading images from the column '%s', captions from '%s'"
                log.info(message, where, names[image], names[caption])
            spaces = all(part.startswith(" ") for part in parts[1:])
            return Columns(delimiter, spaces, len(names), image, caption)
    if is_image_name(header.split(",")[0].strip()):
        raise InputError(
            f"{where} has no header, it begins with {header[:60]!r}; add the line "
            f"'{EXPECTED_HEADER}' above that"
        )
    raise InputError(
        f"{where}: expected the header '{EXPECTED_HEADER}', found {header[:60]!r}; name the column "
        "of the images 'image' and that of the captions 'caption', with one row per caption"
    )


def _first_known(known: Sequence[str], names: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


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
