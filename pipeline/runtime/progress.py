"""Progress bars, on a terminal only."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(
    items: Iterable[Item] | None = None,
    *,
    label: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    shown: bool = True,
) -> "tqdm[Item]":
    """Return a tqdm bar on stderr, hidden if `shown` is false or stderr is not a terminal."""
    return tqdm(
        items,
        desc=label,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        leave=False,
        dynamic_ncols=True,
        disable=not (shown and sys.stderr.isatty()),
    )
