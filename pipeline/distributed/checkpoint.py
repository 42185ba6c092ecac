"""The checkpoint of a run on several ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

from torch import Tensor

from pipeline.distributed.ranks import Ranks
from pipeline.runtime.checkpoint import Checkpoint, State


class SharedCheckpoint(Checkpoint):
    """A checkpoint that rank 0 alone locks, reads and writes; all ranks resume from it.

    It does not depend on the number of ranks: another number can resume.
    """

    def __init__(self, ranks: Ranks, out: Path, fingerprint: str, interval: float) -> None:
        super().__init__(out, fingerprint, interval)
        self._ranks = ranks

    def __enter__(self) -> Self:
        if self._ranks.is_main:
            super().__enter__()
        self._ranks.broadcast(None)  # no rank may work for a run that is refused
        return self

    def __exit__(self, *error: object) -> None:
        if self._ranks.is_main:
            super().__exit__(*error)

    def restore(self) -> State | None:
        saved = super().restore() if self._ranks.is_main else None
        saved, self.complete = self._ranks.broadcast((saved, self.complete))
        return saved

    def stops(self, interrupted: bool) -> bool:
        return self._ranks.any(interrupted)

    def interrupt(self) -> NoReturn:
        self._ranks.broadcast(None)  # until rank 0 has saved
        super().interrupt()

    def is_due(self) -> bool:
        return self._ranks.is_main and super().is_due()

    def save(self, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
        if self._ranks.is_main:
            super().save(tensors, header)

    def save_best(self, model: Path) -> None:
        if self._ranks.is_main:
            super().save_best(model)

    def restore_best(self, model: Path) -> None:
        if self._ranks.is_main:
            super().restore_best(model)

    def delete(self) -> None:
        if self._ranks.is_main:
            super().delete()
