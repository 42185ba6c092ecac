"""What ranks tell each other when something fails: who is here, and who reports it."""

import time
from datetime import timedelta

from torch.distributed import DistError, Store

from pipeline.runtime.errors import InputError, pluralize

REPORTED = "reported"
POLL = 0.1  # seconds


class RollCall:
    """Notes in the store that all ranks share; a store that is lost has no notes."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def wait_for_all(self, timeout: float) -> None:
        """Wait until all ranks have started.

        Raises:
            InputError: some have not within `timeout` seconds; the message names them.
        """
        self._store.set(f"started/{self._rank}", "")
        keys = [f"started/{rank}" for rank in range(self._size)]
        try:
            self._store.wait(keys, timedelta(seconds=timeout))
        except DistError:
            late = name_ranks(self._missing("started"))
            raise InputError(
                f"{late} of {self._size} did not start within {timeout:g} s; start all of them "
                "with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
            ) from None

    def claim_report(self) -> bool:
        """Whether it is for the caller to report the failure: for the first one who asks."""
        try:
            return int(self._store.add(REPORTED, 1)) == 1
        except RuntimeError:
            return True

    def absent(self, grace: float) -> list[int]:
        """After a lost connection: the ranks that do not say within `grace` seconds that they are
        there; none if some rank reports the failure."""
        try:
            self._store.set(f"failed/{self._rank}", "")
            end = time.monotonic() + grace
            while time.monotonic() < end and self._missing("failed"):
                if int(self._store.add(REPORTED, 0)):
                    return []
                time.sleep(POLL)
            return self._missing("failed")
        except RuntimeError:  # the store went with the process that held it
            return [0] if self._rank else []

    def _missing(self, note: str) -> list[int]:
        keys = [f"{note}/{rank}" for rank in range(self._size)]
        return [rank for rank, key in enumerate(keys) if not self._store.check([key])]


def name_ranks(ranks: list[int]) -> str:
    """`rank 2`, `ranks 0 and 2`, `ranks 0, 1, 2 and 5 others`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 4:
        return f"ranks {', '.join(map(str, ranks[:3]))} and {pluralize(len(ranks) - 3, 'other')}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
