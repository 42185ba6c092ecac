"""Start a command as several ranks on this machine, and end them together.

`torchrun` does the same for several machines. Here a rank that fails must leave one line and no
report of many, and a signal must let all ranks save what they have.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from pipeline.distributed.roll_call import POLL, REPORTED, RollCall
from pipeline.runtime.errors import InputError
from pipeline.runtime.signals import handle_stop_signals

LOOPBACK = "127.0.0.1"
LAUNCHED = "SHOWTELL_LAUNCHED"  # in the environment of ranks that `launch` started
GRACE = 5.0  # seconds that ranks have to end once one has failed


def launch(command: Sequence[str], processes: int) -> None:
    """Run the command as this many ranks, and wait for them.

    Raises:
        InputError: a rank was killed; the message names it.
        KeyboardInterrupt: the ranks were interrupted, here or one of them.
        SystemExit: they failed, and have said why.
    """
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    shared = {
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "OMP_NUM_THREADS": str(max(1, num_cores() // processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(store.port),
        LAUNCHED: "1",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    signals = 0

    def on_signal(*_: Any) -> None:
        nonlocal signals
        signals += 1

    ranks: list[subprocess.Popen[bytes]] = []
    with handle_stop_signals(on_signal):
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own, since Ctrl-C would reach both it and this process.
            ranks.append(subprocess.Popen(command, env=shared | own, start_new_session=True))
        first_killed, told, end = None, 0, float("inf")
        while running := [process for process in ranks if process.poll() is None]:
            failed = [rank for rank, process in enumerate(ranks) if process.returncode]
            if failed and end == float("inf"):
                killed = [rank for rank in failed if ranks[rank].returncode < 0]
                if killed and RollCall(store, -1, processes).claim_report():
                    first_killed = killed[0]
                end = time.monotonic() + GRACE
                _send(signal.SIGTERM, running)
            if signals > told:  # a second signal does not wait
                _send(signal.SIGKILL if told else signal.SIGTERM, running)
                told = signals
            if time.monotonic() > end:
                _send(signal.SIGKILL, running)
            time.sleep(POLL)
    _conclude(ranks, first_killed, interrupted=signals > 0, reported=store.add(REPORTED, 0) > 0)


def _conclude(
    ranks: Sequence[subprocess.Popen[bytes]],
    first_killed: int | None,
    interrupted: bool,
    reported: bool,
) -> None:
    codes = [process.returncode for process in ranks]
    if not any(codes):
        return
    killed = [rank for rank, code in enumerate(codes) if code < 0]
    if first_killed is None and killed and not (reported or interrupted):
        first_killed = killed[0]
    if first_killed is not None:
        _raise_killed(first_killed, ranks[first_killed])
    if interrupted or (130 in codes and not reported):
        raise KeyboardInterrupt
    raise SystemExit(1)


def _raise_killed(rank: int, process: subprocess.Popen[bytes]) -> NoReturn:
    name = signal.Signals(-process.returncode).name
    raise InputError(
        f"rank {rank} (process {process.pid}) was ended by {name}, and with it the run; rerun "
        "the same command to resume"
    )


def _send(number: signal.Signals, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(number)


def join_store(rank: int, size: int, timeout: timedelta) -> Store:
    """The store that all ranks share: the launching process's, torchrun's, or else rank 0's."""
    if LAUNCHED in os.environ:
        port = int(os.environ["MASTER_PORT"])
        return TCPStore(LOOPBACK, port, is_master=False, timeout=timeout)
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    return store


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
