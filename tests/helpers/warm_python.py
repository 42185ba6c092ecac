"""A `python` for the stages that DVC starts: each is a fork of a process that has loaded torch.

Most of a small stage's seconds are imports. The fork runs the project in the caller's folder, with
the caller's arguments, environment, standard streams and signals.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PRELOADED = ("torch", "torchvision", "torch.distributed", "pandas", "nltk", "h5py", "PIL.Image")

COMMAND = """#!{python} -IS
import json, os, signal, socket, sys

if sys.argv[1:3] != ["-m", "pipeline"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[3:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    answers = server.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(process, number))
    sys.exit(int(answers.readline()))
"""


@pytest.fixture(scope="session")
def warm_python() -> Iterator[Path]:
    """The folder of this `python`, to put first in PATH."""
    with tempfile.TemporaryDirectory() as folder:
        address, command = Path(folder, "socket"), Path(folder, "bin/python")
        command.parent.mkdir()
        command.write_text(COMMAND.format(python=sys.executable, address=str(address)))
        command.chmod(0o755)
        server = [sys.executable, __file__, str(address)]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield command.parent
            process.terminate()


def serve(address: str) -> None:
    """Fork for every request."""
    for name in PRELOADED:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            return run(connection)
        connection.close()


def run(connection: socket.socket) -> None:
    """Run a request in another fork, and answer with its process id and exit code."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = connection.makefile("rb").read(int.from_bytes(size, "big"))
    child = os.fork()
    if child == 0:
        connection.close()
        return start(files, *json.loads(request))
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    os._exit(0)


def start(files: list[int], arguments: list[str], folder: str, variables: dict[str, str]) -> None:
    """Do what `python -m pipeline` does."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[0], sys.argv = folder, ["-m", *arguments]
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1])
