"""The HTTP server: it cuts off slow senders and stops gracefully."""

import asyncio
import logging
import socket
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.runtime.errors import InputError
from pipeline.runtime.signals import handle_stop_signals
from pipeline.serving.app import Service

HEAD_SECONDS = 10  # for a request's head
STOP_SECONDS = 60  # for what is in flight when the server stops
MAX_CONNECTIONS = 1000


class Server(uvicorn.Server):
    """A server of one service. On a stop signal it answers what is in flight and returns; on a
    second Ctrl-C it returns at once."""

    def __init__(self, service: Service) -> None:
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        super().__init__(
            uvicorn.Config(
                service.app(),
                http=ImpatientProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._service = service

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As the commands do, with SIGHUP, and without raising the signals again at the end."""
        with handle_stop_signals(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose next request has no complete head after a while. The body's time
    is limited by the application."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio leaves it off for the sockets that `listen` makes. An answer's body would then
        # wait 40 ms for the client to acknowledge its head.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._patience:
            self._patience.cancel()

    def _wait_for_head(self) -> None:
        if self._patience:
            self._patience.cancel()
        self._patience = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def _lose_patience(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and not self.transport.is_closing():
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Raises:
        InputError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot listen at {host} port {port} ({reason}); choose another --host or --port"
        ) from None


def address(listening: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
