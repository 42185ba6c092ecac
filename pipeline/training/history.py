"""The history of a training, as CSV: one row per epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.metrics.csv_file import write_csv

Row = Mapping[str, float | None]  # by column; `epoch` is one


@dataclass
class History:
    """The rows so far, and which of them is the best."""

    path: Path  # where `write` puts the CSV
    # Columns by which epochs are ranked, the most important first; a `-` before a column's name
    # means that lower is better. Of equals the first is the best.
    rank_by: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    @property
    def last_epoch(self) -> int:
        return int(self.rows[-1]["epoch"] or 0) if self.rows else 0

    @property
    def best(self) -> Row:
        """The best epoch's row."""
        return max(self.rows, key=self._rank)

    @property
    def best_epoch(self) -> int:
        return int(self.best["epoch"] or 0)

    def is_over(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or none of the last `patience` epochs was the best.

        Patience counts only once a score is above 0.
        """
        if self.last_epoch == epochs:
            return True
        learned = any((row[self.rank_by[0]] or 0) > 0 for row in self.rows)
        return learned and self.last_epoch - self.best_epoch >= patience

    def write(self) -> None:
        write_csv(self.path, [dict(row) for row in self.rows], float_format="%.6g")

    def _rank(self, row: Row) -> tuple[float, ...]:
        return tuple(
            -(row[name[1:]] or 0.0) if name.startswith("-") else row[name] or 0.0
            for name in self.rank_by
        )
