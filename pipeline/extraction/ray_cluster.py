"""The Ray cluster: connecting to it, and what each worker takes of it."""

import logging
import os
import signal
import socket
from typing import Any

import ray

from pipeline.runtime.errors import InputError
from pipeline.runtime.signals import STOP_SIGNALS

CONNECT_SECONDS = 10.0


def connect(address: str | None) -> None:
    """Connect to a cluster, or start one on this machine, which only it can reach."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send them to its authors
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        own = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        settings |= own
    else:
        settings["address"] = address
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        if address not in (None, "auto"):
            _require_listener(address)
        ray.init(**settings)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no Ray cluster at {address} ({reason}); start one (`ray start --head`), or set "
            "distributed.ray_address"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own in their place


def _require_listener(address: str) -> None:
    """Fail at once if nothing listens: Ray tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise InputError(
            f"distributed.ray_address is {address!r}, but must be HOST:PORT of the head node, auto "
            "or null"
        )
    socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def describe(resources: dict[str, float]) -> str:
    """Return `1 GPU and 4 CPUs`."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    amounts = [f"{n:g} {names[key]}{'' if n == 1 else 's'}" for key, n in resources.items()]
    return " and ".join(amounts)


def worker_resources(device: str, workers: int | str) -> tuple[int, dict[str, float]]:
    """How many workers there are, and what each takes: a GPU, or an equal part of the cores.

    `auto` is a worker for each GPU or, without one, for each node.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU")]
    if device != "cpu" and (device == "cuda" or with_gpu):
        count = max(1, int(sum(node["GPU"] for node in with_gpu)))
        cores = min((node["CPU"] // node["GPU"] for node in with_gpu), default=1)
        return (count if workers == "auto" else int(workers)), {"num_gpus": 1, "num_cpus": cores}
    nodes = [node for node in nodes if node.get("CPU")] or nodes  # a head may have none to give
    cores = min(node.get("CPU", 0) for node in nodes)
    if workers == "auto":
        return len(nodes), {"num_cpus": cores}
    per_node = -(-int(workers) // len(nodes))
    share = cores / per_node
    return int(workers), {"num_cpus": share if share < 1 else share // 1}
