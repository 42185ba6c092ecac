"""Extraction by the workers of a Ray cluster.

Ray places the workers, starts them and notices when they die. Which worker extracts which rows is
decided here, and the rows come back in order.
"""

import logging
import math
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from pipeline.config.schema import DistributedConfig, ExtractConfig
from pipeline.extraction.plan import ExtractionPlan
from pipeline.extraction.ray_cluster import connect, describe, worker_resources
from pipeline.extraction.row_files import RowFile
from pipeline.extraction.shared_files import SharedFiles
from pipeline.extraction.stream import Rows
from pipeline.extraction.worker import ExtractInputs, ExtractionWorker
from pipeline.runtime.errors import InputError, pluralize

log = logging.getLogger(__name__)

BLOCK_BYTES = 32 * 2**20  # of features: a worker's results are held in memory
BLOCK_BATCHES = 64
QUEUED = 2  # blocks per worker, so that it never waits for the next
AHEAD = 4  # blocks per worker that may be finished before their turn
MAX_DEATHS = 3  # of workers at one block
PATIENCE = 60.0  # seconds without a block before that is logged


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"on {self.host} (process {self.pid})"


class RayWorker:
    """An `ExtractionWorker` in a process of its own."""

    def __init__(self, inputs: ExtractInputs, *args: Any) -> None:
        self._inputs, self._args = inputs, args
        self._worker: ExtractionWorker | None = None

    def plan(self) -> tuple[ExtractionPlan, Place]:
        """Get ready. Not the constructor's work: what that raises is hard to read."""
        with _naming_the_host():
            archive = self._inputs.open_archive()
            self._worker = ExtractionWorker(archive, self._inputs.backbone, *self._args)
        return self._worker.plan, Place(socket.gethostname(), os.getpid())

    def extract(self, begin: int, end: int, shared: SharedFiles) -> Rows:
        """The rows, without their values if they could be written to the files."""
        assert self._worker
        parts = []
        with _naming_the_host(), shared.opened() as files:
            for part in self._worker.extract(begin, end):
                for file in files:
                    file.write(begin, part.values, part.checksums)
                begin += len(part.checksums)
                parts.append(replace(part, values=None) if files else part)
        values = [part.values for part in parts if part.values is not None]
        return Rows(
            np.concatenate(values) if values else None,
            np.concatenate([part.finite for part in parts]),
            np.concatenate([part.checksums for part in parts]),
        )


class RayExtractor:
    """Extracts ranges of rows as an `ExtractionWorker` does, by many of them.

    A context manager, which ends the workers.
    """

    def __init__(
        self, inputs: ExtractInputs, config: ExtractConfig, distributed: DistributedConfig
    ) -> None:
        """
        Args:
            inputs: at the same paths on every node.

        Raises:
            InputError: there is no such cluster, or a worker cannot use the inputs.
        """
        connect(distributed.ray_address)
        try:
            count, resources = worker_resources(config.device, distributed.workers)
            log.info("%s, each with %s", pluralize(count, "Ray worker"), describe(resources))
            self._inputs, self._config = inputs, config
            self._actor: Any = ray.remote(RayWorker).options(max_restarts=0, **resources)
            self._threads = max(1, int(resources["num_cpus"]))
            self._starts, self._failed_starts = 0, 0
            self._starting: dict[Any, tuple[int, Any]] = {}  # by call: a worker and its number
            self._workers: dict[int, tuple[Any, Place]] = {}  # that are ready, by number
            self._start(None)
            self.plan = self._choose_plan()
            for _ in range(count - 1):
                self._start(self.plan)
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def extract(self, begin: int, end: int, files: Sequence[RowFile] = ()) -> Iterator[Rows]:
        """Yield the rows from `begin`, a multiple of the batch size, to `end`, block by block.

        Workers that find the `files` write values there themselves.

        Raises:
            InputError: an image cannot be used, a feature is not finite, or workers die again and
                again.
        """
        with SharedFiles.of(files) as shared:
            yield from self._extract(begin, end, shared)

    def _extract(self, begin: int, end: int, shared: SharedFiles) -> Iterator[Rows]:
        size = self._block_size()
        blocks = deque((first, min(first + size, end)) for first in range(begin, end, size))
        running: dict[Any, tuple[int, tuple[int, int]]] = {}  # by call: a worker, and its block
        finished: dict[int, Rows] = {}
        deaths = Counter[tuple[int, int]]()
        while begin < end:
            limit = begin + AHEAD * size * len(self._workers)
            queued = Counter(number for number, _ in running.values())
            for number, (worker, _) in self._workers.items():
                while blocks and blocks[0][0] < limit and queued[number] < QUEUED:
                    block = blocks.popleft()
                    running[worker.extract.remote(*block, shared)] = (number, block)
                    queued[number] += 1
            for call in self._wait([*running, *self._starting]):
                if call in self._starting:
                    self._finish_start(call)
                    continue
                number, block = running.pop(call)
                if rows := _result(call):
                    finished[block[0]] = rows
                    continue
                blocks.appendleft(block)
                deaths[block] += 1
                if deaths[block] > MAX_DEATHS:
                    raise InputError(f"{MAX_DEATHS + 1} workers died at {self._describe(block)}")
                self._replace(number)
            while begin in finished:
                rows = finished.pop(begin)
                begin += len(rows.checksums)
                yield rows

    def _start(self, plan: ExtractionPlan | None) -> None:
        worker = self._actor.remote(self._inputs, self._config, plan, self._threads)
        self._starting[worker.plan.remote()] = (self._starts, worker)
        self._starts += 1

    def _finish_start(self, call: Any) -> ExtractionPlan | None:
        """Take a worker into service, or start another in its place if it has died."""
        number, worker = self._starting.pop(call)
        if (result := _result(call)) is None:
            self._failed_starts += 1
            if self._failed_starts > MAX_DEATHS:
                raise InputError(f"{self._failed_starts} workers died while they started")
            self._start(getattr(self, "plan", None))
            return None
        plan, place = result
        log.info("a worker is ready %s", place)
        self._workers[number] = (worker, place)
        return plan

    def _choose_plan(self) -> ExtractionPlan:
        """Wait for the first worker, whose plan all follow."""
        while True:
            for call in self._wait(list(self._starting)):
                if plan := self._finish_start(call):
                    return plan

    def _replace(self, number: int) -> None:
        """Start another worker for one that died; several of its blocks may tell so."""
        if number in self._workers:
            worker, place = self._workers.pop(number)
            log.warning("the worker %s died; others extract its blocks", place)
            ray.kill(worker)  # it may only be out of reach
            self._start(self.plan)

    def _wait(self, calls: list[Any]) -> list[Any]:
        done, _ = ray.wait(calls, timeout=PATIENCE)
        if not done:
            ready = pluralize(len(self._workers), "worker")
            log.info("no rows for %.0f s, with %s ready (see `ray status`)", PATIENCE, ready)
        return done

    def _block_size(self) -> int:
        """A multiple of the batch size, in rows."""
        row_size = math.prod(self.plan.feature_shape) * np.dtype(self._config.dtype).itemsize
        batch = self.plan.batch_size
        return batch * max(1, min(BLOCK_BATCHES, BLOCK_BYTES // row_size // batch))

    def _describe(self, block: tuple[int, int]) -> str:
        with self._inputs.open_archive() as archive:
            ids = archive.ids
        first, last = (ids[row % len(ids)] for row in (block[0], block[1] - 1))
        return f"the images {first} to {last} (rows {block[0]} to {block[1] - 1})"


def _result(call: Any) -> Any:
    """The result of a worker's call, or None if the worker died, or its node with the result."""
    try:
        return ray.get(call)
    except (RayActorError, ObjectLostError):
        return None
    except RayTaskError as error:
        if isinstance(error.cause, InputError | OSError | MemoryError):
            raise error.cause from None
        raise


@contextmanager
def _naming_the_host() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (on {socket.gethostname()})") from None
