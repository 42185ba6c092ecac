"""`showtell serve`: the API of a real server, as friends and strangers use it."""

import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.serving import server as server_module
from pipeline.serving.app import PAGE
from pipeline.serving.examples import read_examples
from pipeline.serving.upload import Limits
from tests.conftest import ROOT, Artifacts, command, one_line
from tests.helpers.serving import (
    Served,
    attending,
    attention_of,
    captioner_of,
    is_same,
    scene,
    serving,
    write_scenes,
)

pytest_plugins = ["tests.helpers.serving"]


def test_a_caption_is_the_librarys_however_the_image_is_sent(served: Served) -> None:
    content, captioner = scene(1), served.service.captioner
    expected = captioner.caption(content)
    answers = [served.post(content), served.post(content, "image/png; charset=x")]
    answers.append(served.client.post("/api/caption", files={"image": ("a.png", content)}))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert is_same(answer.json(), expected)
    described = answers[0].json()
    assert [token["token"] for token in described["tokens"]] == list(expected.tokens)
    assert described["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert described["image"] == {"width": 128, "height": 96, "seen": [0, 0, 1, 1]}


def test_a_request_has_its_own_search(served: Served) -> None:
    content, captioner = scene(2), served.service.captioner
    search = BeamSearchConfig(4, 0.5, 6, 2, beam_groups=2, diversity_penalty=1.5)
    expected = captioner.caption(content, search, alternatives=3)
    answer = served.post(
        content,
        **{"beam_size": 4, "length_penalty": 0.5, "max_length": 6, "no_repeat_ngram_size": 2},
        **{"beam_groups": 2, "diversity_penalty": 1.5, "alternatives": 3},
    ).json()
    assert is_same(answer, expected)
    assert len(answer["alternatives"]) == len(expected.alternatives)
    assert all(map(is_same, answer["alternatives"], expected.alternatives))


def test_attention_is_a_grid_for_each_token(tiny: Artifacts, tmp_path: Path) -> None:
    captioner = attending(tiny, tmp_path)
    with serving(captioner, tmp_path) as server:
        answer = server.post(scene(3), attention="true").json()
        assert server.client.get("/api/model").json()["attention"] is True
    expected = captioner.caption(scene(3), attention=True).attention
    np.testing.assert_allclose(attention_of(answer), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beam_size": 21}, "beam_size must be between 1 and 20"),
        ({"beam_size": "2.0"}, "beam_size must be a whole number"),
        ({"beam_size": "٣"}, "beam_size must be a whole number"),
        ({"length_penalty": "nan"}, "length_penalty must be a number"),
        ({"length_penalty": "-0.1"}, "length_penalty must be between 0 and 5"),
        ({"beam_size": 5, "beam_groups": 2}, "5 is not a multiple of beam_groups 2"),
        ({"beam_size": 2, "alternatives": 2}, "2 alternatives need a beam_size of 3"),
        ({"attention": "true"}, "this model has no attention to return"),
        ({"attention": "yes"}, "attention must be true or false"),
        ({"beam_size": [1, 2]}, "beam_size is given twice"),
        ({"beams": 2}, "there is no parameter 'beams'"),
    ],
)
def test_a_bad_parameter_is_one_line(served: Served, params: Any, message: str) -> None:
    answer = served.post(scene(0), **params)
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, of few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(width + 1), 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int] = (400, 300)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, "JPEG")
    return file.getvalue()


HOSTILE = {
    "a bomb of pixels": (png_of(50_000, 50_000), "image/png", 413),
    "a million pixels wide": (png_of(1_000_000, 1), "image/png", 422),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415),
    "SVG named PNG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 415),
    "HTML named JPEG": (b"<!doctype html><script>alert(1)</script>", "image/jpeg", 415),
    "EPS, for which Pillow runs programs": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/jpeg", 415),
    "nothing": (b"", "image/jpeg", 422),
    "half a JPEG": (jpeg()[:9000], "image/jpeg", 422),
    "a head alone": (png_of(10, 10)[:-20], "image/png", 422),
    "noise": (os.urandom(5000), "application/octet-stream", 415),
    "JSON": (b"{}", "application/json", 415),
    "a form without an image": (b"--x--\r\n", "multipart/form-data; boundary=x", 422),
    "a form without a boundary": (b"--x--\r\n", "multipart/form-data", 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused_in_one_line(served: Served, name: str) -> None:
    content, kind, status = HOSTILE[name]
    answer = served.post(content, kind)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.json()["error"]
    assert served.post(scene(1)).status_code == 200  # and the next one is served


def test_a_body_may_not_exceed_the_limit(tiny: Artifacts) -> None:
    limits = Limits(max_bytes=100_000)
    with serving(captioner_of(tiny), tiny.folder, limits=limits) as server:
        big = jpeg((700, 700))
        assert 150_000 < len(big) < 300_000
        for answer in (
            server.post(big),
            server.client.post("/api/caption", files={"image": big}),
            server.post(iter([big[:50_000], big[50_000:]])),  # chunked: no length is declared
        ):
            assert answer.status_code == 413
            assert answer.json() == {"error": "the image has more than 0.1 MB"}
        with suppress(httpx.TransportError):  # cut off before it reads the answer
            assert server.post(itertools.repeat(bytes(10_000))).status_code == 413  # endless
        server.wait_until_idle()
        assert server.post(scene(1)).status_code == 200


def raw(port: int, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(content)
    return connection


HEAD = (
    b"POST /api/caption HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999\r\n"
)


def test_slow_senders_are_cut_off(tiny: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    with serving(captioner_of(tiny), tiny.folder, limits=Limits(seconds=0.3)) as server:
        with raw(server.port, HEAD + b"\r\nabc") as slow:  # the body never ends
            answer = slow.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 0.3 seconds" in answer
            assert slow.recv(100) == b""  # closed
        with raw(server.port, HEAD) as slow:  # nor does the head
            assert slow.recv(100) == b""
        with raw(server.port, b"") as silent:
            assert silent.recv(100) == b""
        server.wait_until_idle()


def test_beyond_the_places_a_request_is_told_when_to_come_back(tiny: Artifacts) -> None:
    with serving(captioner_of(tiny), tiny.folder, max_queue=1) as server:
        with raw(server.port, HEAD + b"\r\n"):
            while not server.service.batcher.taken:
                time.sleep(0.01)
            busy = server.post(scene(1))
            assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
            assert "busy" in busy.json()["error"]
        server.wait_until_idle()  # a client that leaves gives its place back
        assert server.post(scene(1)).status_code == 200
        assert 'path="/api/caption",status="503"} 1' in server.client.get("/metrics").text


def test_concurrent_requests_share_batches_and_get_their_own_answers(tiny: Artifacts) -> None:
    captioner, beams = captioner_of(tiny), (2, 3)
    images = [scene(seed) for seed in range(16)]
    searches = {n: BeamSearchConfig(n, max_length=12) for n in beams}
    expected = {n: list(captioner.stream(images, search)) for n, search in searches.items()}
    assert len({caption.score for caption in expected[2]}) == len(images)
    jobs = list(itertools.product(range(len(images)), beams)) * 2
    fixed = {"length_penalty": 0, "max_length": 12, "no_repeat_ngram_size": 0}
    with serving(captioner, tiny.folder) as server, ThreadPoolExecutor(16) as clients:

        def ask(job: tuple[int, int]) -> bool:
            image, beam_size = job
            answer = server.post(images[image], beam_size=beam_size, **fixed)
            assert answer.status_code == 200, answer.text
            return is_same(answer.json(), expected[beam_size][image])

        assert all(clients.map(ask, jobs))
        batches = server.service.metrics.batches
        assert batches._sum == len(jobs) > sum(batches._counts)


def test_a_failure_of_the_captioner_is_answered_and_the_next_request_served(
    tiny: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = captioner_of(tiny)
    with serving(captioner, tiny.folder) as server:
        for part in ("features", "caption_features"):
            with monkeypatch.context() as broken:
                broken.setattr(captioner, part, lambda *_: 1 // 0)
                answer = server.post(scene(1))
            assert answer.status_code == 500
            assert "internal error" in answer.json()["error"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert server.post(scene(1)).status_code == 200


def test_every_answer_has_the_security_headers(served: Served) -> None:
    for path in [*PAGE, "/api/model", "/openapi.json", "/health", "/metrics", "/none", "/..%2f"]:
        answer = served.client.get(path)
        assert answer.status_code == (404 if path in ("/none", "/..%2f") else 200)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    wrong = served.client.get("/api/caption")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json() == {"error": "Method Not Allowed"}


def test_another_sites_page_cannot_use_it(served: Served) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    answer = served.client.post("/api/caption", files={"image": scene(1)}, headers=headers)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_model_card_and_health(served: Served, tiny: Artifacts) -> None:
    card = served.client.get("/api/model").json()
    captioner = served.service.captioner
    assert card["decoder"] == "show_and_tell"
    assert card["vocabulary_size"] == len(captioner.vocabulary)
    assert card["search"]["beam_size"] == captioner.search.beam_size
    assert card["card"] is None
    assert served.client.get("/health").json() == {"status": "ok"}
    served.service.stopping = True
    stopping = served.client.get("/health")
    served.service.stopping = False
    assert (stopping.status_code, stopping.json()) == (503, {"status": "stopping"})


def test_examples_are_small_and_without_metadata(tiny: Artifacts, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "examples", 2)
    (folder / "broken.jpg").write_bytes(b"no image")
    examples = read_examples(folder)
    with serving(captioner_of(tiny), folder, examples=examples) as server:
        listed = server.client.get("/api/model").json()["examples"]
        assert listed == [{"name": str(n), "url": f"examples/{n}.jpg"} for n in range(2)]
        content = server.client.get(listed[1]["url"]).content
        assert not Image.open(io.BytesIO(content)).getexif()
        assert server.post(content, "image/jpeg").status_code == 200
        assert server.client.get("/examples/2.jpg").status_code == 404


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
    assert "does not exist" in one_line(command("serve", tmp_path))
    with server_module.listen("127.0.0.1", 0) as taken:
        message = one_line(command("serve", models, "--port", taken.getsockname()[1]))
    assert "choose another --host or --port" in message
    message = one_line(command("serve", models, "--examples", tmp_path))
    assert "has no image that can be read" in message
    for name in [name for name in sys.modules if name.startswith("pipeline.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.exceptions", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert "pip install 'showtell[serve]'" in one_line(command("serve", models))


def test_threads_are_not_left_behind(tiny: Artifacts) -> None:
    before = threading.active_count()
    with serving(captioner_of(tiny), tiny.folder) as server:
        assert server.post(scene(1)).status_code == 200
    assert threading.active_count() <= before
