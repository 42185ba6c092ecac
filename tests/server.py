"""A real HTTP server on loopback that can misbehave in the ways that servers do."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """What the server has, how it fails, and what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"v1"'
        self.ranges = True  # honours Range
        self.break_after: list[int] = []  # bytes to send before dropping the connection, a request
        self.statuses: list[int] = []  # answers to give before behaving
        self.length: str | None = None  # what to say instead of the body's own
        self.redirect: str | None = None  # an address to send whoever asks to
        self.pause = 0.0  # seconds between pieces of 4 KiB
        self.requests: list[str | None] = []  # the Range header of each request
        self.url = ""


@contextmanager
def serving(content: bytes) -> Iterator[Behaviour]:
    behaviour = Behaviour(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.requests.append(asked)
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
            if asked and behaviour.ranges and same:
                begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
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
            with suppress(ConnectionError):  # whoever asked may have been killed
                for piece in range(0, len(body), 4096):
                    self.wfile.write(body[piece : piece + 4096])
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
