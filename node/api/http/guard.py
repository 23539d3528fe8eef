"""Who may ask: those with an API key, where there is one; and no web page of another site.

A listener on loopback without a key is open to every program of this machine, as any local server is. It must not be
open to every web site that the machine's browser visits: a page may post to 127.0.0.1, and may reach it under its own
name by DNS rebinding. So without a key, the Host must be an address or this machine, and an Origin must be of this
machine too, or of a program on it. With a key, any page that knows it may ask.
"""

from __future__ import annotations

import hmac
import ipaddress
import platform
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node import metrics, tracing
from node.api.http import errors
from node.api.http.look import PAGES

OPEN = (*PAGES, "/health", "/v1/health", "/openapi.json")  # tell nothing of the mesh
_METHODS = b"GET, POST, DELETE, OPTIONS"
# Schemes of pages of programs on this machine (Obsidian, Tauri, VS Code; Ollama's server lets them in too):
# no web site can have such an origin. Not "null", which a sandboxed frame of any site has.
_PROGRAMS = frozenset({"app", "tauri", "vscode-webview", "vscode-file"})


class Guard:
    """An ASGI application before another: refuses, answers preflights, counts."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], routes: Sequence[str]) -> None:
        self._keys = [k.encode() for k in keys]
        self.serve(app, routes)

    def serve(self, app: ASGIApp, routes: Sequence[str]) -> None:
        """From now on this is the application; requests to other paths than `routes` are counted together."""
        self._app = app
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        route = scope["path"] if scope["path"] in self._routes else "other"
        origin = headers.get("origin")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.HTTP_REQUESTS.labels(route, str(message["status"])).inc()
                if origin is not None:
                    out = MutableHeaders(scope=message)
                    out["access-control-allow-origin"] = origin
                    out["vary"] = "origin"
            await send(message)

        refusal = self._refusal(scope, headers, origin)
        if refusal is not None:
            origin = None
            await refusal(scope, receive, answer)
        elif scope["method"] == "OPTIONS" and origin is not None:
            asked = headers.get("access-control-request-headers", "*")
            allowed = {"access-control-allow-methods": _METHODS.decode(), "access-control-allow-headers": asked}
            await Response(status_code=200, headers=allowed)(scope, receive, answer)
        else:
            if tracing.is_on():
                tracing.arrived(headers.items())
            await self._app(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        if self._keys:
            if scope["path"] in OPEN or scope["method"] == "OPTIONS" or self._knows_key(headers):
                return None
            message = "this node wants an API key: send it as `Authorization: Bearer KEY`"
            body = errors.of(message, "authentication_error", "invalid_api_key")
            return Response(body, 401, {"www-authenticate": "Bearer"}, "application/json")
        if not is_this_machine(headers.get("host", "")):
            return _forbidden("the Host header names neither an address nor this machine", "http://127.0.0.1:PORT")
        if origin is not None and not is_of_this_machine(origin):
            return _forbidden(f"a page of {origin[:80]} may not ask this node", "an API key: start it with --api-key")
        return None

    def _knows_key(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, in a time that does not depend on which of them it is.
        return any([hmac.compare_digest(k, key.encode()) for k in self._keys])


def is_of_this_machine(origin: str) -> bool:
    """Whether an Origin is of a server, or of a program with pages of its own, on this machine."""
    scheme, _, host = origin.partition("://")
    return scheme in _PROGRAMS or is_this_machine(host)


def is_this_machine(host: str) -> bool:
    """Whether a host, perhaps with a port, is an address or a name of this machine."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if not name:
        return False
    if name in ("localhost", platform.node().lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _forbidden(what: str, use: str) -> Response:
    body = errors.of(f"{what}: use {use}", "permission_error", "forbidden")
    return Response(body, 403, media_type="application/json")
