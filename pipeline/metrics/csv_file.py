"""CSV files of numbers: write, read and check them.

All that reads raises an ArtifactError if the file is missing or damaged; `where` is what the
message calls the file.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import atomic_write, read_bytes

LARGEST = 1e15  # larger than any score, loss or count


def write_csv(path: Path, data: Any, float_format: str) -> None:
    """Write a data frame, columns by name, or rows as mappings."""
    with atomic_write(path) as scratch:
        table = pd.DataFrame(data)
        table.to_csv(scratch, index=False, float_format=float_format, lineterminator="\n")


def read_numbers(path: Path, columns: Sequence[str]) -> dict[str, list[float]]:
    """Read columns of numbers."""
    cells = parse_csv(read_bytes(path), path, columns)
    return {name: to_numbers(cells[name], f"{path}, {name}") for name in columns}


def parse_csv(content: bytes, where: object, columns: Sequence[str]) -> dict[str, list[str]]:
    """Parse columns, with every cell as text."""
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ArtifactError(where, f"is not a CSV table ({error})") from None
    if not rows:
        raise ArtifactError(where, "has no rows")
    for name in columns:
        if name not in rows[0]:
            raise ArtifactError(where, f"has no column '{name}'")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ArtifactError(where, f"has fewer or more cells in line {line} than in the header")
    return {name: [row[name] for row in rows] for name in columns}


def to_numbers(cells: Sequence[str], where: str) -> list[float]:
    """Convert the cells of a column."""
    lines = enumerate(cells, start=2)
    return [to_number(_as_float(cell), f"{where} in line {line}") for line, cell in lines]


def to_number(value: object, where: str) -> float:
    """Return a number from JSON as a float, if it is finite and of a size that a chart can show."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST:
        return float(value)
    raise ArtifactError(where, f"is {value!r}, which is not a number")


def _as_float(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
