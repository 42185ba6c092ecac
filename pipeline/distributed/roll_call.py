"""What ranks tell each other when something fails: who is here, and who reports it."""

import os
import queue
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import NoReturn, TypeVar

from torch.distributed import DistError, Store

from pipeline.runtime.errors import InputError, pluralize

Answer = TypeVar("Answer")

REPORTED = "reported"
POLL = 0.1  # seconds
STORE_TIMEOUT = 2.0  # seconds in which a store answers that is not lost
LEAVE_TIMEOUT = 4.0  # seconds
NO_RANKS: list[int] = []
FOREVER = timedelta(days=365)


class RollCall:
    """Notes in the store that all ranks share. A store is lost with the process that holds it,
    which is rank 0 unless something else started the ranks."""

    def __init__(self, store: Store, rank: int, size: int, holds_store: bool = False) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._holds_store = holds_store
        self._absent: list[int] = []  # as `absent` found them

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
            late = name_ranks(self._missing("started", self._store))
            raise InputError(
                f"{late} of {self._size} did not start within {timeout:g} s; start all of them "
                "with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
            ) from None

    def exit_when_reported(self) -> None:
        """From now on, end this process as soon as another one has reported a failure, whatever it
        does or waits for."""
        store = self._store.clone()  # a connection of its own, since waiting blocks it

        def watch() -> None:
            with suppress(DistError):  # the store is lost
                store.wait([REPORTED], FOREVER)
                reporter, code = store.get(REPORTED).decode().split()
                if int(reporter) != self._rank:
                    self._leave(store)
                    exit_at_once(int(code))

        Thread(target=watch, daemon=True).start()

    def claim_report(self, code: int) -> bool:
        """Whether it is for this process to report the failure: for the first one that asks. All
        others exit with the same code."""
        own = f"{self._rank} {code}"
        first = self._rank <= 1  # without the store, since rank 0 held it
        claimed = _ask(
            lambda: self._store.compare_set(REPORTED, "", own).decode() == own, otherwise=first
        )
        self._leave(self._store)
        return claimed

    def _leave(self, store: Store) -> None:
        """Note that this rank knows of the report; wait for the others if they need its store."""

        def note() -> list[int]:
            store.set(f"left/{self._rank}", "")
            missing = self._missing("left", store) if self._holds_store else []
            return [rank for rank in missing if rank not in self._absent]

        end = time.monotonic() + LEAVE_TIMEOUT
        while _ask(note, otherwise=NO_RANKS) and time.monotonic() < end:
            time.sleep(POLL)

    def absent(self, grace: float) -> list[int]:
        """After a lost connection: the ranks that do not say within `grace` seconds that they are
        there."""
        end = time.monotonic() + grace

        def check_in() -> list[int]:
            self._store.set(f"failed/{self._rank}", "")
            return self._missing("failed", self._store)

        missing = [0]
        while missing and time.monotonic() < end:
            missing = _ask(check_in, otherwise=[0])
            time.sleep(POLL)
        self._absent = missing
        return missing

    def _missing(self, note: str, store: Store) -> list[int]:
        keys = [f"{note}/{rank}" for rank in range(self._size)]
        return [rank for rank, key in enumerate(keys) if not store.check([key])]


def _ask(question: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The answer of a store; `otherwise` if it is lost, or the process that holds it hangs."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(question())
        except DistError:
            answers.put(otherwise)

    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=STORE_TIMEOUT)
    except queue.Empty:
        return otherwise


def exit_at_once(code: int) -> NoReturn:
    """Exit; an orderly end would wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def name_ranks(ranks: list[int]) -> str:
    """`rank 2`, `ranks 0 and 2`, `ranks 0, 1, 2 and 5 others`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 4:
        return f"ranks {', '.join(map(str, ranks[:3]))} and {pluralize(len(ranks) - 3, 'other')}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
