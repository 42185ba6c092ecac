"""Download a large file over HTTP: resume, retry, verify, then move it into place."""

import errno
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

from pipeline.images.zip_files import open_zip, read_member
from pipeline.runtime.errors import InputError, pluralize
from pipeline.runtime.files import file_digest, replace_durably
from pipeline.runtime.locks import try_lock
from pipeline.runtime.progress import progress_bar
from pipeline.sources.containers import MAX_TEXT_BYTES, is_archive_name, is_text_name

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes
MAX_BACKOFF = 60.0  # seconds
_NETWORK = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTDOWN)


class RetryableError(Exception):
    """A transient failure."""


def is_zip_name(name: str) -> bool:
    """Whether a file should be a zip: its suffix does not say that it is a tar or text."""
    name = name.lower()
    return name.endswith(".zip") or not (is_text_name(name) or is_archive_name(name))


def fetch(
    url: str,
    out: Path,
    md5: str | None,
    *,
    retries: int,
    timeout: float,
    first_pause: float = 1.0,
) -> None:
    """Download a zip, or a file that `containers` reads by its suffix, to `out`.

    A `.part` file beside `out` holds what has arrived. An interrupted download resumes from it if
    the server supports that (HTTP Range, RFC 9110 §14) and still has the same file (If-Range).

    Args:
        md5: the digest that the file must have; None only checks that a zip is complete.
        retries: retries after failures that may pass.
        timeout: seconds without data after which an attempt fails.
        first_pause: seconds before the first retry; doubled for each further one.

    Raises:
        InputError: the server refuses, all attempts fail, or the file has another digest.
    """
    # The URL is part of the name: one mirror's partial file must not be continued from another.
    part = out.with_name(f"{out.name}.{sha256(url.encode()).hexdigest()[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(part, out):
        _fetch_whole(url, part, out, md5, partial(_retry, url, part, retries, timeout, first_pause))
        try:
            if is_zip_name(out.name):
                open_zip(part).close()
        except InputError as error:
            _discard(part)
            raise InputError(f"fetched {url}, but {str(error).replace(str(part), 'it')}") from None
        if md5 is not None and (digest := file_digest(part)) != md5:
            raise InputError(  # keeps the part, in case the params are wrong
                f"fetched {url}: it has MD5 {digest}, but {md5} is expected; set the params to "
                "match, or rerun to fetch it again"
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        replace_durably(part, out)
        _etag_path(part).unlink(missing_ok=True)


@contextmanager
def _exclusive(part: Path, out: Path) -> Iterator[None]:
    """Lock the part file.

    Raises:
        InputError: another process is fetching, or has just fetched, the file.
    """
    with part.open("ab") as file:
        if not try_lock(file):
            raise InputError(
                f"another process is already fetching {out}; wait for it, or stop it: the next "
                "run resumes its download"
            )
        if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
            raise InputError(f"another process has just fetched {out}; rerun")
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                _discard(part)


def _fetch_whole(
    url: str, part: Path, out: Path, md5: str | None, fetch_rest: Callable[[], None]
) -> None:
    resumed = part.stat().st_size > 0
    if resumed and _is_zip(part):  # complete: an earlier run was killed or found another digest
        if md5 is not None and file_digest(part) == md5:
            return
        _truncate(part)
        resumed = False
    fetch_rest()
    if resumed and is_zip_name(out.name) and not _is_intact(part, md5):
        log.warning("%s: the resumed download is damaged; starting over", url)
        _truncate(part)
        fetch_rest()


def _is_zip(part: Path) -> bool:
    try:
        open_zip(part).close()
    except InputError:
        return False
    return True


def _is_intact(part: Path, md5: str | None) -> bool:
    """Whether a resumed download is one file: after a power loss, a gap may hold zeros."""
    if md5 is not None:
        return file_digest(part) == md5
    try:
        with open_zip(part) as archive:
            for member in progress_bar(archive.infolist(), label="check", unit="file"):
                read_member(archive, member, MAX_TEXT_BYTES)
    except InputError:
        return False
    return True


def _retry(url: str, part: Path, retries: int, timeout: float, first_pause: float) -> None:
    for attempt in range(retries + 1):
        try:
            return _fetch_once(url, part, timeout)
        except RetryableError as error:
            if attempt == retries:
                received = part.stat().st_size if part.exists() else 0
                hint = f"; {received} bytes are kept, rerun to resume" if received else ""
                raise InputError(
                    f"cannot fetch {url}: {error} ({pluralize(retries + 1, 'attempt')}){hint}"
                ) from None
            pause = min(first_pause * 2**attempt, MAX_BACKOFF)
            log.warning("%s: %s; retrying in %.0f s", url, error, pause)
            time.sleep(pause)


def _fetch_once(url: str, part: Path, timeout: float) -> None:
    received = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "showtell"})
        if received and (etag := _read_etag(part)):
            request.add_header("Range", f"bytes={received}-")
            request.add_header("If-Range", etag)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            _receive(response, part, received)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # our part is not the beginning of the server's file
            _truncate(part)
            raise RetryableError("the server has a different file than the part here") from None
        if error.code in (408, 429) or error.code >= 500:
            raise RetryableError(f"HTTP {error.code} {error.reason}") from None
        raise InputError(
            f"cannot fetch {url}: HTTP {error.code} {error.reason}; check the address in params"
        ) from None
    except urllib.error.URLError as error:
        raise RetryableError(str(error.reason)) from None
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise RetryableError(str(error) or type(error).__name__) from None
    except OSError as error:
        if error.errno not in _NETWORK:
            raise
        raise RetryableError(error.strerror) from None
    except ValueError as error:  # urllib's answer to an invalid URL, here or in a redirect
        raise InputError(f"cannot fetch {url}: {error}; check the address in params") from None


def _receive(response: http.client.HTTPResponse, part: Path, received: int) -> None:
    """Append to the part if the server resumes, else overwrite it."""
    resumes = response.status == 206 and (
        response.headers.get("Content-Range", "").startswith(f"bytes {received}-")
    )
    if not resumes:
        received = 0
        _write_etag(part, response)
    length = response.headers.get("Content-Length", "")
    total = received + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    label = part.name.split(".")[0]
    with (
        part.open("ab" if resumes else "wb") as out,
        progress_bar(label=label, total=total, unit="B", initial=received) as progress,
    ):
        while block := response.read1(BLOCK):  # read1: keeps what has arrived, however slowly
            out.write(block)
            progress.update(len(block))
            received += len(block)
    if total is not None and received < total:
        raise RetryableError(f"the connection broke at {received} of {total} bytes")


def _write_etag(part: Path, response: http.client.HTTPResponse) -> None:
    """Keep what identifies this version of the file; a weak ETag does not (RFC 9110)."""
    etag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if etag and not etag.startswith("W/"):
        _etag_path(part).write_text(etag, encoding="latin-1")  # the encoding of headers
    else:
        _etag_path(part).unlink(missing_ok=True)


def _read_etag(part: Path) -> str:
    """Return the kept ETag, or "" if there is none or its file is damaged."""
    path = _etag_path(part)
    etag = path.read_text(encoding="latin-1") if path.exists() else ""
    return etag if etag.isprintable() else ""


def _truncate(part: Path) -> None:
    """Empty the part file, which stays locked."""
    os.truncate(part, 0)
    _etag_path(part).unlink(missing_ok=True)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_path(part).unlink(missing_ok=True)


def _etag_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")
