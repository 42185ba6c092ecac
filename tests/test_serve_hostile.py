"""`showtell serve` among strangers: uploads that are not images, too big, too slow or too many."""

import io
import itertools
import os
import struct
import time
import zlib
from contextlib import suppress

import httpx
import pytest
from PIL import Image

from pipeline.serving import server as server_module
from pipeline.serving.app import PAGE
from pipeline.serving.gate import allowed_hosts
from pipeline.serving.upload import Limits
from tests.conftest import Artifacts
from tests.helpers.serving import HEAD, Served, captioner_of, raw, read_to_end, scene, serving

pytest_plugins = ["tests.helpers.serving"]


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
    "a form's text field": (
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        422,
    ),
    "a form without a boundary": (b"--x--\r\n", "multipart/form-data", 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused_in_one_line(served: Served, name: str) -> None:
    content, kind, status = HOSTILE[name]
    answer = served.post(content, kind)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.json()["error"]
    assert ("send the image as a file" in answer.json()["error"]) == (name == "a form's text field")
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


def test_slow_senders_are_cut_off(tiny: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    with serving(captioner_of(tiny), tiny.folder, limits=Limits(seconds=0.3)) as server:
        with raw(server.port, HEAD + b"\r\nabc") as slow:  # the body never ends
            answer = read_to_end(slow)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 0.3 seconds" in answer
        with raw(server.port, HEAD) as slow:  # nor does the head
            assert read_to_end(slow) == b""
        with raw(server.port, b"") as silent:
            assert read_to_end(silent) == b""
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
    for path in ("/api/model", "/metrics", "/health", "/examples/0.jpg", "/api/caption"):
        sent = {"files": {"image": scene(1)}} if path == "/api/caption" else {}
        method = "POST" if sent else "GET"
        answer = served.client.request(method, path, headers=headers, **sent)
        assert answer.status_code == 403
        assert answer.json() == {"error": "another site's page may not use this server"}
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert served.client.get("/", headers=headers).status_code == 200  # a link to the page


def test_another_name_for_this_machine_is_refused(tiny: Artifacts) -> None:
    """If evil.test pointed at 127.0.0.1, its page would not be another site's."""
    assert allowed_hosts("0.0.0.0", []) is None
    hosts = allowed_hosts("127.0.0.1", ["captions.test"])
    assert allowed_hosts("::1", ["captions.test"]) == hosts
    with serving(captioner_of(tiny), tiny.folder, hosts=hosts) as server:
        for host, status in (
            ("localhost", 200),
            ("127.0.0.1:8000", 200),
            ("[::1]:8000", 200),
            ("Captions.test", 200),
            ("evil.test", 421),
            ("127.0.0.1.evil.test:8000", 421),
            ("localhost@evil.test", 421),
        ):
            answer = server.client.get("/api/model", headers={"Host": host})
            assert answer.status_code == status, host
            sent = {"files": {"image": scene(1)}, "headers": {"Host": host}}
            assert server.client.post("/api/caption", **sent).status_code == status, host
        assert (
            "does not answer for evil.test"
            in (server.client.get("/", headers={"Host": "evil.test"}).json()["error"])
        )
