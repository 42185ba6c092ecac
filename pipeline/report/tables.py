"""The reports that are tables of numbers, read and checked."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.runtime.errors import ArtifactError

LARGEST = 1e15  # past it is no score, loss or count of ours


def read_numbers(
    path: Path, columns: Sequence[str], may_be_empty: Collection[str] = ()
) -> dict[str, list[float | None]]:
    """Named columns of a CSV file, each with a number a row; None where a cell is empty.

    Args:
        may_be_empty: the columns in which a cell may be.

    Raises:
        InputError: the file is absent, has no rows, lacks a column, or a cell is no number.
    """
    rows = read_rows(path, columns)
    table: dict[str, list[float | None]] = {}
    for name in columns:
        table[name] = [
            None
            if row[name] == "" and name in may_be_empty
            else number(row[name], f"{path}, line {line}, {name}")
            for line, row in enumerate(rows, start=2)
        ]
    return table


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns, every cell as text.

    Raises:
        InputError: the file is absent or empty, or has not these columns in every row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as content:
            rows = list(csv.DictReader(content, strict=True))
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ArtifactError(path, f"is not a CSV table ({error})") from None
    if not rows:
        raise ArtifactError(path, "has no rows")
    for name in columns:
        if name not in rows[0]:
            raise ArtifactError(path, f"has no column '{name}'")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ArtifactError(path, f"has fewer or more cells in line {line} than in the header")
    return rows


def number(value: object, where: str) -> float:
    """A finite number from JSON or a CSV cell, of a size that can be drawn.

    Raises:
        InputError: it is none; the line says where.
    """
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            read = float(value)
            if abs(read) < LARGEST:
                return read
    except (ValueError, OverflowError):
        pass
    raise ArtifactError(where, f"is {value!r}, which is not a number")
