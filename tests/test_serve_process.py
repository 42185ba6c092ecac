"""`showtell serve` as a process: how it starts and stops."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.serving import server as server_module
from tests.conftest import ROOT, Artifacts, command, one_line
from tests.helpers.serving import HEAD, captioner_of, raw, scene, serving

pytest_plugins = ["tests.helpers.serving"]


class Process:
    """`showtell serve` as a user starts it."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        arguments = ("serve", folder, "--port", port, "--device", "cpu")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().split(" at ")[1].split()[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_it_stops_gracefully_and_starts_again_after_a_kill(
    tiny: Artifacts, processes: list[Process]
) -> None:
    processes.append(first := Process(tiny.folder / "models"))
    content = scene(1)
    answer = httpx.post(first.url + "api/caption", content=content, timeout=60)
    assert answer.status_code == 200
    rebound = httpx.post(first.url + "api/caption", content=content, headers={"Host": "evil.test"})
    assert rebound.status_code == 421
    first.process.kill()
    first.process.wait()
    processes.append(second := Process(tiny.folder / "models", first.port))
    assert httpx.post(second.url + "api/caption", content=content, timeout=60).json() == (
        answer.json()
    )
    half = len(content) // 2
    head = HEAD.replace(b"999", str(len(content)).encode()) + b"Connection: close\r\n\r\n"
    with raw(second.port, head + content[:half]) as client:  # in flight
        time.sleep(0.3)
        second.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert second.process.poll() is None
        client.sendall(content[half:])
        assert client.recv(100_000).startswith(b"HTTP/1.1 200 ")
    assert second.process.wait(timeout=30) == 0
    assert second.process.stderr
    assert "Traceback" not in second.process.stderr.read()


def test_what_cannot_be_served_is_one_line(
    tiny: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tiny.folder / "models"
    assert "it has no config.json and no captioner" in one_line(command("serve", tmp_path))
    with server_module.listen("127.0.0.1", 0) as taken:
        message = one_line(command("serve", models, "--port", taken.getsockname()[1]))
    assert "choose another --host or --port" in message
    message = one_line(command("serve", models, "--examples", tmp_path))
    assert "has no image that can be read" in message
    for name in [name for name in sys.modules if name.startswith("pipeline.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.exceptions", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert "pip install starlette uvicorn python-multipart" in one_line(command("serve", models))


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_arrive(tiny: Artifacts) -> None:
    with serving(captioner_of(tiny), tiny.folder) as served:
        served.client.get("/health")
        (connection,) = served.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_threads_are_not_left_behind(tiny: Artifacts) -> None:
    before = threading.active_count()
    with serving(captioner_of(tiny), tiny.folder) as server:
        assert server.post(scene(1)).status_code == 200
    assert threading.active_count() <= before
