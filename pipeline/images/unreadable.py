"""The list of images that cannot be used: `download` writes it, `prepare` and `extract` read it."""

import csv
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.errors import ArtifactError
from pipeline.runtime.files import atomic_write

HEADER = ["image_id", "error"]


def write_unreadable(path: Path, errors: Mapping[str, str]) -> None:
    """Write why each image cannot be used, by image id."""
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(sorted(errors.items()))


def read_unreadable(path: Path) -> dict[str, str]:
    """Read why each image cannot be used, by image id.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    except FileNotFoundError:
        raise ArtifactError(path, "does not exist") from None
    except (ValueError, csv.Error):
        header, rows = [], []
    if header != HEADER or any(len(row) != len(HEADER) for row in rows):
        raise ArtifactError(path, "is not a list of images")
    return dict(rows)
