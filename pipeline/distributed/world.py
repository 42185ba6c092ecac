"""Run a stage's work on all its ranks: alone, started here, or started by torchrun and its like."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from pipeline.distributed.launch import INTERRUPTED, LAUNCHED, join_store, launch
from pipeline.distributed.ranks import ALONE, Ranks
from pipeline.distributed.roll_call import RollCall, exit_at_once, name_ranks
from pipeline.runtime.device import DeviceName, resolve_device
from pipeline.runtime.errors import InputError
from pipeline.runtime.signals import handle_stop_signals

# Parts of the messages of lost connections.
LOST = ("gloo", "Application timeout caused pair closure", "Connection closed by peer")
GRACE = 4.0  # seconds in which a rank that lives notices that another has gone


def on_ranks(
    work: Callable[[Ranks], None], processes: int, timeout: float, device: DeviceName
) -> None:
    """Call `work` on every rank.

    If the environment names this process's rank, as under torchrun, it is one of those. Otherwise
    this very command is started as `processes` ranks, and `work` is called there.

    Args:
        timeout: the seconds after which a rank that does not answer ends the run.
        device: where the work is done; on a GPU each rank has one of its own.

    Raises:
        InputError: the ranks cannot be started, or one of them was killed or does not answer.
    """
    if int(_variable("WORLD_SIZE", "1")) > 1:
        _join(work, timeout, device)
    elif processes > 1 and "RANK" not in os.environ:
        launch([sys.executable, "-m", "pipeline", *sys.argv[1:]], processes)
    else:
        work(ALONE)


def _join(work: Callable[[Ranks], None], timeout: float, device: DeviceName) -> None:
    """Work as one of the ranks that the environment describes."""
    import torch.distributed as dist

    rank, size = int(_variable("RANK")), int(_variable("WORLD_SIZE"))
    _variable("MASTER_ADDR"), int(_variable("MASTER_PORT"))
    if rank > 0:  # the others would say the same
        logging.getLogger().setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    limit = timedelta(seconds=timeout)
    try:
        store = join_store(rank, size, limit)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise InputError(f"rank {rank} cannot meet the others at {where}: {reason}") from None
    holds_store = rank == 0 and LAUNCHED not in os.environ
    roll_call = RollCall(store, rank, size, holds_store)
    with _reported_once(roll_call, timeout):
        roll_call.exit_when_reported()
        roll_call.wait_for_all(timeout)
        on_gpu = resolve_device(device).type == "cuda"
        if on_gpu:
            _take_gpu(int(_variable("LOCAL_RANK")))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        # NCCL ends a process that waits too long, without a clear line: gloo must be first.
        group = dist.new_group(backend="nccl", timeout=2 * limit) if on_gpu else None
        work(Ranks(rank, size, group))
    dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    if number >= torch.cuda.device_count():
        raise InputError(
            f"local rank {number} has no GPU: {torch.cuda.device_count()} are visible; start as "
            "many ranks as there are GPUs (distributed.processes)"
        )
    torch.cuda.set_device(number)


@contextmanager
def _reported_once(roll_call: RollCall, timeout: float) -> Iterator[None]:
    """Let one rank alone report what went wrong; the others exit without a word."""
    try:
        yield
    except KeyboardInterrupt:
        if LAUNCHED in os.environ:
            exit_at_once(INTERRUPTED)  # `launch` reports it
        _claim(roll_call, INTERRUPTED)
        raise
    except Exception as error:
        if not _is_lost_connection(error):
            _claim(roll_call, 1)
            raise
        with handle_stop_signals(lambda *_: None):  # whoever started the ranks ends them all
            absent = roll_call.absent(GRACE)
            _claim(roll_call, 1)
        if not absent:
            reason = str(error).splitlines()[0]
            raise InputError(f"the ranks lost their connection: {reason}") from None
        raise InputError(
            f"{name_ranks(absent)} ended, or did not answer within {timeout:g} s "
            "(distributed.timeout); rerun the same command to resume"
        ) from None


def _claim(roll_call: RollCall, code: int) -> None:
    """Return if this rank is the one to report a failure, or else exit."""
    if not roll_call.claim_report(code):
        exit_at_once(code)


def _is_lost_connection(error: Exception) -> bool:
    """Gloo raises a RuntimeError that names its source file or, inside `backward`, only what was
    lost."""
    if isinstance(error, torch.distributed.DistError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(part in said for part in LOST)


def _variable(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, default)
    if value is None or not (value.isdigit() or name == "MASTER_ADDR"):
        raise InputError(
            f"the environment has {name}={value or ''}, but WORLD_SIZE={os.environ['WORLD_SIZE']}: "
            "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun does"
        )
    return value
