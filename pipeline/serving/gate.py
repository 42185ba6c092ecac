"""Who may ask: a browser's requests for another site are refused, whoever makes them.

A page of another site can send requests to any address that the browser reaches. Browsers mark
them (Fetch Metadata), but not those to a name that its owner points at this machine (DNS
rebinding): these have another Host.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.runtime.errors import sanitize
from pipeline.serving.upload import Body, Limits

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d+$")


def allowed_hosts(host: str, named: Collection[str]) -> frozenset[str] | None:
    """The names that requests may use for a server that listens at `host`; None: any."""
    if not named and not is_loopback(host):
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(name.lower() for name in (*LOOPBACK_NAMES, own, *named))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """Lets requests through, or answers them with one line."""

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] | None, public: Collection[str], limits: Limits
    ) -> None:
        """
        Args:
            hosts: the names and addresses, without ports, that requests may use; None: any.
            public: the paths that another site may link to.
        """
        self._app, self._hosts, self._public, self._limits = app, hosts, public, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            return await self._app(scope, receive, send)
        await Body(receive, self._limits).drain()  # otherwise the client may miss the answer
        await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        name = PORT.sub("", headers.get("host", "")).lower()
        if self._hosts is not None and name not in self._hosts:
            asked = sanitize(name[:100]) or "no host"
            why = f"this server does not answer for {asked}; its option --allowed-host adds a name"
            return JSONResponse({"error": why}, 421)
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] not in self._public:
            return JSONResponse({"error": "another site's page may not use this server"}, 403)
        return None
