"""The ranks of a stage as forks of one process, which has loaded torch once for all."""

import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.campaigns.kills import FORKS


class World:
    """A stage on ranks that find each other by their environment, as under Slurm."""

    def __init__(self, arguments: Sequence[object], size: int, folder: Path) -> None:
        """Start the stage.

        Args:
            folder: for what each rank prints.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / f"log{rank}" for rank in range(size)]
        self.ranks: list[ForkServerProcess] = []
        for rank, log in enumerate(self._logs):
            log.write_text("")
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = [str(word) for word in arguments]
            self.ranks.append(FORKS.Process(target=_run, args=(words, own, log)))
            self.ranks[-1].start()

    def join(self, timeout: float = 60) -> list[int | None]:
        """Wait for the end of all ranks; return their exit codes."""
        for rank in self.ranks:
            rank.join(timeout)
        codes = [rank.exitcode for rank in self.ranks]
        for rank in self.ranks:
            rank.kill()  # if it is still there
        return codes

    def printed(self) -> list[str]:
        """What each rank has printed."""
        return [log.read_text() for log in self._logs]

    def errors(self) -> list[str]:
        """The lines with which ranks failed, of all ranks; there is never a traceback."""
        text = "".join(self.printed())
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if line.startswith("error: ")]


def _run(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    from pipeline.cli import main  # here, so that the parent needs none of it

    with log.open("a") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["showtell", *arguments]
    main()
