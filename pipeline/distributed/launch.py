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
from typing import Any

import torch.distributed as dist
from torch.distributed import Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from pipeline.distributed.roll_call import POLL, RollCall
from pipeline.runtime.errors import InputError
from pipeline.runtime.signals import handle_stop_signals

LOOPBACK = "127.0.0.1"
INTERRUPTED = 130  # a rank's exit code
LAUNCHED = "SHOWTELL_LAUNCHED"  # in the environment of ranks that `launch` started
SILENT = (INTERRUPTED, *(-number for number in signal.Signals))  # exit codes without a report
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
        first, told, end = None, 0, float("inf")
        while True:
            running = [process for process in ranks if process.poll() is None]
            failed = [rank for rank, process in enumerate(ranks) if process.returncode]
            if failed and end == float("inf"):
                silent = [rank for rank in failed if ranks[rank].returncode in SILENT]
                if silent:
                    code = INTERRUPTED if ranks[silent[0]].returncode > 0 else 1
                    if RollCall(store, -1, processes).claim_report(code):
                        first = silent[0]
                end = time.monotonic() + GRACE
                _send(signal.SIGTERM, running)
            if not running:
                break
            if signals > told:  # a second signal does not wait
                _send(signal.SIGKILL if told else signal.SIGTERM, running)
                told = signals
            if time.monotonic() > end:
                _send(signal.SIGKILL, running)
            time.sleep(POLL)
    codes = [process.returncode for process in ranks]
    if first is not None and codes[first] < 0:
        name = signal.Signals(-codes[first]).name
        raise InputError(
            f"rank {first} (process {ranks[first].pid}) was ended by {name}, and with it the run; "
            "rerun the same command to resume"
        )
    if first is not None or (signals and any(codes)):
        raise KeyboardInterrupt
    if any(codes):
        raise SystemExit(1)


def _send(number: signal.Signals, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(number)


def join_store(rank: int, size: int, timeout: timedelta) -> Store:
    """The store that all ranks share: the launching process's, torchrun's, or else rank 0's."""
    if LAUNCHED not in os.environ and dist.is_torchelastic_launched():
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        return store
    hosts = rank == 0 and LAUNCHED not in os.environ
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Rank 0 does not wait here for the others, since it could not say which of them is missing.
    return TCPStore(*where, is_master=hosts, wait_for_workers=False, timeout=timeout)


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
