"""Downloads over HTTP: resumed, retried, verified, and never incomplete at their place."""

import errno
import hashlib
import http.client
import io
import os
import random
import re
import ssl
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.runtime.errors import InputError
from pipeline.sources.fetch import fetch
from tests.helpers.server import Behaviour, serving


def random_zip(seed: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("noise.bin"), random.Random(seed).randbytes(3_000_000))
    return file.getvalue()


CONTENT = random_zip()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with serving(CONTENT) as behaviour:
        yield behaviour


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "images.zip"


def get(server: Behaviour, out: Path, md5: str | None = MD5, retries: int = 2) -> None:
    fetch(server.url, out, md5, retries=retries, timeout=5, first_pause=0.01)


def leftovers(out: Path) -> list[str]:
    if not out.parent.exists():
        return []
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def test_a_complete_file_and_nothing_else_arrives(server: Behaviour, out: Path) -> None:
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert leftovers(out) == []


def test_a_dropped_connection_is_resumed_where_it_broke(server: Behaviour, out: Path) -> None:
    server.break_after = [1_000_000, 500_000]
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_partial_download_is_kept_for_the_next_run(server: Behaviour, out: Path) -> None:
    server.break_after = [1_000_000]
    with pytest.raises(InputError, match=r"broke at 1000000 of .*1000000 bytes are kept"):
        get(server, out, retries=0)
    assert not out.exists()
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=1000000-"
    assert leftovers(out) == []


def test_without_range_support_the_whole_file_is_fetched(server: Behaviour, out: Path) -> None:
    server.break_after, server.ranges = [1_000_000], False
    get(server, out)
    assert out.read_bytes() == CONTENT


def test_without_an_etag_nothing_is_resumed(server: Behaviour, out: Path) -> None:
    server.break_after, server.etag = [1_000_000], None
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_a_file_that_changed_meanwhile_is_fetched_again(server: Behaviour, out: Path) -> None:
    server.break_after = [1_000_000]
    with pytest.raises(InputError):
        get(server, out, retries=0)
    server.content, server.etag = random_zip(seed=1), '"v2"'
    get(server, out, md5=hashlib.md5(server.content).hexdigest())
    assert out.read_bytes() == server.content


@pytest.mark.parametrize("md5", [MD5, None])
@pytest.mark.parametrize("kept", [0, 500_000, 999_999])
def test_a_part_damaged_by_a_power_loss_is_fetched_again(
    server: Behaviour, out: Path, md5: str | None, kept: int
) -> None:
    server.break_after = [1_000_000]
    with pytest.raises(InputError):
        get(server, out, md5, retries=0)
    (part,) = (path for path in out.parent.iterdir() if path.suffix == ".part")
    part.write_bytes(part.read_bytes()[:kept].ljust(1_000_000, b"\0"))
    get(server, out, md5)
    assert out.read_bytes() == CONTENT


def test_a_busy_server_is_retried(server: Behaviour, out: Path) -> None:
    server.statuses = [503, 429]
    get(server, out)
    assert out.read_bytes() == CONTENT


def test_a_missing_file_is_not_retried(server: Behaviour, out: Path) -> None:
    server.statuses = [404]
    with pytest.raises(InputError, match=r"HTTP 404 .*check the address"):
        get(server, out)
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", ["²", "-1", "9" * 5000])
def test_an_invalid_content_length_is_ignored(server: Behaviour, out: Path, length: str) -> None:
    server.length = length
    get(server, out)
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["http://[::1/", "http://a..b/x.zip"])
def test_an_invalid_url_is_reported(server: Behaviour, out: Path, address: str) -> None:
    server.redirect = address
    for url in (address, server.url):
        with pytest.raises(InputError, match=rf"cannot fetch {re.escape(url)}: .*check the addr"):
            fetch(url, out, None, retries=0, timeout=2)


def test_a_file_is_on_the_disk_before_it_is_in_place(
    server: Behaviour, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = list[tuple[str, bool]](), os.fsync

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().suffix, out.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    get(server, out)
    assert synced == [(".part", False), ("", True)]  # the file, then its folder


def test_a_wrong_digest_names_both(server: Behaviour, out: Path) -> None:
    with pytest.raises(InputError, match=f"has MD5 {MD5}, but {'0' * 32} is expected"):
        get(server, out, md5="0" * 32)
    assert not out.exists()


def test_after_the_params_are_corrected_nothing_is_fetched_again(
    server: Behaviour, out: Path
) -> None:
    with pytest.raises(InputError, match="set the params to match, or rerun to fetch it again"):
        get(server, out, md5="0" * 32)
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert leftovers(out) == []
    assert server.requests == [None]


def test_a_file_with_another_digest_is_fetched_again_by_the_next_run(
    server: Behaviour, out: Path
) -> None:
    server.content, right = random_zip(seed=1), server.content
    for _ in range(2):
        with pytest.raises(InputError, match="has MD5"):
            get(server, out, retries=0)
    server.content, server.etag = right, '"v2"'
    get(server, out, retries=0)
    assert out.read_bytes() == CONTENT
    assert server.requests == [None] * 3


@pytest.mark.parametrize(
    "error",
    [ssl.SSLError("bad record"), OSError(errno.EHOSTUNREACH, "no route"), ConnectionResetError()],
    ids=repr,
)
def test_a_network_failure_during_the_download_is_retried(
    server: Behaviour, out: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    reads, really = [], http.client.HTTPResponse.read1

    def fails_once(self: http.client.HTTPResponse, n: int = -1) -> bytes:
        reads.append(n)
        if len(reads) == 2:
            raise error
        return really(self, n)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", fails_once)
    get(server, out)
    assert out.read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("tag", [b"\0" * 6, b'"ab\ncd"', b"\xff\xfe", b""])
def test_with_a_damaged_etag_the_download_starts_over(
    server: Behaviour, out: Path, tag: bytes
) -> None:
    server.break_after = [1_000_000]
    with pytest.raises(InputError):
        get(server, out, retries=0)
    (path,) = (path for path in out.parent.iterdir() if path.suffix == ".etag")
    path.write_bytes(tag)
    get(server, out, retries=0)
    assert out.read_bytes() == CONTENT


def test_a_second_process_is_rejected_and_harms_nothing(server: Behaviour, out: Path) -> None:
    server.pause = 0.0005
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, server, out)
        while not leftovers(out) or not server.requests:
            time.sleep(0.01)
        with pytest.raises(InputError, match=r"another process is already fetching .*images\.zip"):
            get(server, out)
        first.result()
    assert out.read_bytes() == CONTENT
    assert server.requests == [None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (CONTENT[:2_000_000], "a truncated or damaged zip"),
        (b"gone", "not a zip"),
    ],
)
def test_a_file_that_is_not_a_zip_is_reported(out: Path, content: bytes, message: str) -> None:
    with serving(content) as server, pytest.raises(InputError, match=message) as error:
        get(server, out, md5=None)
    assert server.url in str(error.value)
    assert not out.exists()
    assert leftovers(out) == []


def test_an_older_file_survives_a_failed_fetch(server: Behaviour, out: Path) -> None:
    get(server, out)
    server.statuses = [404]
    with pytest.raises(InputError):
        get(server, out)
    assert out.read_bytes() == CONTENT


def test_no_server_at_all(out: Path) -> None:
    with pytest.raises(InputError, match=r"cannot fetch http://127\.0\.0\.1:9/x\.zip.*2 attempts"):
        fetch("http://127.0.0.1:9/x.zip", out, None, retries=1, timeout=2, first_pause=0.01)
