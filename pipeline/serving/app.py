"""The routes: the page, the API, and what operators ask for."""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.captioning.captioner import Captioner
from pipeline.runtime.errors import InputError
from pipeline.serving.answers import describe_caption, describe_model
from pipeline.serving.batcher import Batcher, CaptionerError, QueueFullError
from pipeline.serving.examples import Example
from pipeline.serving.gate import Gate
from pipeline.serving.metrics import Metrics
from pipeline.serving.openapi import openapi
from pipeline.serving.settings import parse_settings
from pipeline.serving.upload import Body, Limits, read_image, unless_gone

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
PAGE = {  # the page's files, by their paths
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/card.js": ("card.js", "text/javascript; charset=utf-8"),
    "/sliders.js": ("sliders.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/attention.js": ("attention.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
FAILED = "internal error; the server's log has more"
GONE = 499  # nginx's status of a client that left; only the metrics see it


class Service:
    """A captioner with its page and API."""

    def __init__(
        self,
        captioner: Captioner,
        folder: Path,
        examples: Sequence[Example] = (),
        limits: Limits | None = None,
        max_batch: int = 32,
        max_queue: int = 64,
        hosts: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            hosts: the names and addresses that requests may use for this server; None: any.
        """
        self._hosts = hosts
        self.captioner, self.examples, self.limits = captioner, examples, limits or Limits()
        self.stopping = False
        self.metrics = Metrics()
        self.model = describe_model(captioner, folder, self.limits)
        self._sizes = {"max_batch": max_batch, "max_queue": max_queue}
        self.batcher: Batcher

    def app(self) -> ASGIApp:
        routes = [
            *(Route(path, _static((HERE / name).read_bytes(), kind))
              for path, (name, kind) in PAGE.items()),
            Route("/examples/{number:int}.jpg", self._example),
            Route("/api/caption", self._caption, methods=["POST"]),
            Route("/api/model", self._model),
            Route("/openapi.json", _json(openapi(self.limits))),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]  # fmt: skip
        handlers: Any = {HTTPException: _refusal, Exception: _failure}
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        paths = {route.path: route.path for route in routes}
        return Observed(Gate(inner, self._hosts, PAGE, self.limits), self.metrics, paths)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        observe = self.metrics.batches.observe
        async with Batcher(self.captioner, observe=observe, **self._sizes) as self.batcher:
            yield

    async def _caption(self, request: Request) -> Response:
        began, body = time.perf_counter(), Body(request.receive, self.limits)
        try:
            found = await self._find_caption(request, body)
        except HTTPException as refused:
            if refused.status_code != 408:
                await body.drain()
            close = {} if body.ended else {"Connection": "close"}
            headers = {**(refused.headers or {}), **close}
            raise HTTPException(refused.status_code, refused.detail, headers) from None
        except ClientDisconnect:
            found = None
        if found is None:
            return Response(status_code=GONE)
        self.metrics.latency.observe(time.perf_counter() - began)
        caption, size = found
        return _answer(describe_caption(caption, size, self.captioner))

    async def _find_caption(self, request: Request, body: Body) -> Any:
        """The caption and the image's size, or None if the client has left.

        Raises:
            HTTPException: why there is none.
        """
        try:
            settings = parse_settings(request.query_params.multi_items(), self.captioner)
            with self.batcher.place():
                content = await read_image(request.scope, body)
                return await unless_gone(body, self.batcher.caption(content, settings))
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        except QueueFullError:
            why = "the server is busy; try again in a second"
            raise HTTPException(503, why, {"Retry-After": "1"}) from None
        except CaptionerError:
            raise HTTPException(500, FAILED) from None

    async def _model(self, request: Request) -> Response:
        examples = [
            {"name": example.name, "url": f"examples/{number}.jpg"}
            for number, example in enumerate(self.examples)
        ]
        return _answer({**self.model, "examples": examples})

    async def _example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.examples):
            raise HTTPException(404, "there is no such example")
        return Response(self.examples[number].jpeg, media_type="image/jpeg")

    async def _health(self, request: Request) -> Response:
        if self.stopping:
            return _answer({"status": "stopping"}, 503)
        return _answer({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        text = self.metrics.text(self.batcher.taken, self.batcher.max_queue)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


class Observed:
    """Adds the security headers to every answer, and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: dict[str, str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                path = self._paths.get(scope["path"], "other")
                self._metrics.requests[path, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _static(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _json(content: Any) -> Callable[[Request], Awaitable[Response]]:
    return _static(json.dumps(content, indent=1).encode(), "application/json")


def _answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})


async def _refusal(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    return _answer({"error": error.detail}, error.status_code, headers)


async def _failure(request: Request, error: Exception) -> Response:
    return _answer({"error": FAILED}, 500)
