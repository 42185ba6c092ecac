"""An HTTP server on loopback that can fail as real servers do."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """The server's file, its failures, and the requests that it got."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"v1"'
        self.ranges = True  # supports Range
        self.break_after: list[int] = []  # per request, the bytes to send before disconnecting
        self.statuses: list[int] = []  # error statuses of the first requests
        self.length: str | None = None  # a wrong Content-Length
        self.redirect: str | None = None  # a URL to redirect to
        self.pause = 0.0  # seconds between blocks of 4 KiB
        self.requests: list[str | None] = []  # the Range header of each request
        self.url = ""


@contextmanager
def serving(content: bytes) -> Iterator[Behaviour]:
    behaviour = Behaviour(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested = self.headers.get("Range")
            behaviour.requests.append(requested)
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            if behaviour.redirect is not None:
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.end_headers()
                return
            same = self.headers.get("If-Range") in (None, behaviour.etag)
            begin = 0
            if requested and behaviour.ranges and same:
                begin = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])  # type: ignore[index]
                if begin >= len(behaviour.content):
                    self.send_error(416)
                    return
                self.send_response(206)
                total = len(behaviour.content)
                self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
            else:
                self.send_response(200)
            body = behaviour.content[begin:]
            self.send_header("Content-Length", behaviour.length or str(len(body)))
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            self.end_headers()
            if behaviour.break_after:
                self.wfile.write(body[: behaviour.break_after.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return
            if not behaviour.pause:
                self.wfile.write(body)
                return
            with suppress(ConnectionError):  # the client may have been killed
                for start in range(0, len(body), 4096):
                    self.wfile.write(body[start : start + 4096])
                    time.sleep(behaviour.pause)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behaviour.url = f"http://127.0.0.1:{server.server_port}/archive.zip"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
