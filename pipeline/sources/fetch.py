"""Fetching a large file over HTTP: streamed, resumed, retried, checked, moved into place whole."""

import errno
import fcntl
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pipeline.images.archive import MAX_BYTES
from pipeline.images.zip_files import open_zip, read_member
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import file_digest, replace_durably
from pipeline.runtime.progress import progress_bar

log = logging.getLogger(__name__)

BLOCK = 1 << 20
MAX_BACKOFF = 60.0
_NETWORK = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTDOWN)


class RetryableError(Exception):
    """The connection failed in a way that another try may mend."""


def fetch(
    url: str,
    out: Path,
    md5: str | None,
    *,
    retries: int,
    timeout: float,
    first_pause: float = 1.0,
) -> None:
    """Fetch a zip to `out`.

    What has come is kept beside `out` in a `.part` file, so that a broken run goes on where it
    stopped, if the server can (HTTP Range, RFC 9110 §14) and still has the same file (If-Range).

    Args:
        md5: the digest that the file must have; None to check only that it is a whole zip.
        retries: how often to try again after a failure that may pass.
        timeout: seconds without any data before a try counts as failed.
        first_pause: seconds before the first retry, doubled with each.

    Raises:
        InputError: the server refuses, the tries are used up, or the file is another.
    """
    # The name tells addresses apart: a mirror's half must not be continued from another.
    part = out.with_name(f"{out.name}.{sha256(url.encode()).hexdigest()[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(part, out):
        _fetch_whole(url, part, md5, retries, timeout, first_pause)
        try:
            open_zip(part).close()
        except InputError as error:
            _discard(part)
            raise InputError(f"fetched {url}, but {str(error).replace(str(part), 'it')}") from None
        if md5 is not None and (found := file_digest(part)) != md5:
            raise InputError(  # the part is kept: with that MD5 it is what was wanted
                f"fetched {url}: it has MD5 {found}, but {md5} is expected; set the params to "
                "match, or run again to fetch it anew"
            )
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        replace_durably(part, out)
        _tag(part).unlink(missing_ok=True)


@contextmanager
def _exclusive(part: Path, out: Path) -> Iterator[None]:
    """
    Raises:
        InputError: another process is at it.
    """
    with part.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is already fetching {out}; wait for it, or end it, and what it "
                "has fetched is gone on with"
            ) from None
        except OSError:
            log.debug("a file system that knows no locks")
        if not part.exists() or not os.path.samestat(part.stat(), os.fstat(held.fileno())):
            raise InputError(f"another process has just fetched {out}; run again")
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                _discard(part)


def _fetch_whole(
    url: str, part: Path, md5: str | None, retries: int, timeout: float, first_pause: float
) -> None:
    resumed = part.stat().st_size > 0
    if resumed and _is_zip(part):  # all of it: an earlier run found another digest, or was killed
        if md5 is not None and file_digest(part) == md5:
            return
        _restart(part)
        resumed = False
    _fetch_with_retries(url, part, retries, timeout, first_pause)
    if resumed and not _is_expected(part, md5):
        log.warning("%s: what was resumed is not whole; fetching it from the start", url)
        _restart(part)
        _fetch_with_retries(url, part, retries, timeout, first_pause)


def _is_zip(part: Path) -> bool:
    try:
        open_zip(part).close()
    except InputError:
        return False
    return True


def _is_expected(part: Path, md5: str | None) -> bool:
    """Whether two runs' halves are one file: what a lost power leaves may be blank in between."""
    if md5 is not None:
        return file_digest(part) == md5
    try:
        with open_zip(part) as archive:
            for member in progress_bar(archive.infolist(), label="check", unit="file"):
                read_member(archive, member, MAX_BYTES)
    except InputError:
        return False
    return True


def _fetch_with_retries(
    url: str, part: Path, retries: int, timeout: float, first_pause: float
) -> None:
    for attempt in range(retries + 1):
        try:
            return _fetch_once(url, part, timeout)
        except RetryableError as error:
            if attempt == retries:
                have = part.stat().st_size if part.exists() else 0
                kept = f"; {have} bytes are kept, run again to go on" if have else ""
                raise InputError(
                    f"cannot fetch {url}: {error} ({retries + 1} tries){kept}"
                ) from None
            pause = min(first_pause * 2**attempt, MAX_BACKOFF)
            log.warning("%s: %s; trying again in %.0f s", url, error, pause)
            time.sleep(pause)


def _fetch_once(url: str, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    tag = _tag(part)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "showtell"})
        if have and (known := _known(tag)):
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", known)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            _receive(response, part, have)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have is no beginning of what they have
            _restart(part)
            raise RetryableError("the server has another file than the part here") from None
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
    except ValueError as error:  # urllib's of an address that is none, here or in a redirect
        raise InputError(f"cannot fetch {url}: {error}; check the address in params") from None


def _receive(response: http.client.HTTPResponse, part: Path, have: int) -> None:
    """Append to the part where the server continues, else write it anew."""
    continues = response.status == 206 and (
        response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    )
    if not continues:
        have = 0
        _remember(part, response)
    length = response.headers.get("Content-Length", "")
    total = have + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    with (
        part.open("ab" if continues else "wb") as out,
        progress_bar(
            label=part.name.split(".")[0], total=total, unit="B", initial=have
        ) as progress,
    ):
        while block := response.read1(BLOCK):  # what has come, however slowly, is kept
            out.write(block)
            progress.update(len(block))
            have += len(block)
    if total is not None and have < total:
        raise RetryableError(f"the connection broke at {have} of {total} bytes")


def _remember(part: Path, response: http.client.HTTPResponse) -> None:
    """Keep what tells this version of the file from a later one; a weak tag cannot (RFC 9110)."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if tag and not tag.startswith("W/"):
        _tag(part).write_text(tag, encoding="latin-1")  # as headers are
    else:
        _tag(part).unlink(missing_ok=True)


def _known(tag: Path) -> str:
    """What was remembered, if it is what a server could have said."""
    if not tag.exists():
        return ""
    known = tag.read_text(encoding="latin-1")
    return known if known.isprintable() else ""


def _restart(part: Path) -> None:
    """In the same file, which is held."""
    os.truncate(part, 0)
    _tag(part).unlink(missing_ok=True)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")
