"""The routes and the listener."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node.api.http import anthropic, errors, ollama, openapi
from node.api.http.chat import Chat
from node.api.http.completions import Completions
from node.api.http.embeddings import Embeddings
from node.api.http.guard import Guard
from node.api.http.here import Here, now
from node.api.http.look import PAGES, Look
from node.api.http.remembered import Remembered, Stored
from node.api.http.responses import Responses
from node.api.http.tokens import Tokens
from node.errors import ConclaveError, NotFound, NotReady

MAX_CONNECTIONS = 1024  # beyond, 503
BACKLOG = 256
STOP_S = 2  # how long a stop waits for answers that are being written
KEEP_ALIVE_S = 75  # an idle connection; longer than the 60 s after which proxies close theirs


def bind(host: str, port: int) -> socket.socket:
    """Take a port, before the model is loaded. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: only then asyncio sets TCP_NODELAY, without which each answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


_Handler = Callable[[Request], Awaitable[Response]]


class _Server(uvicorn.Server):
    """uvicorn inside of a program that has its own way with signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None are taken."""
        yield


class Gateway:
    """The HTTP listener of a node. `keys` are its API keys; none: whoever reaches it may ask. `certificate` is the file
    of a TLS certificate and that of its key, which is empty if both are in one; without one, it speaks plain HTTP.

    From `start` to `open`, while the model loads, everything is answered with 503 and when to try again.
    """

    def __init__(
        self, listener: socket.socket, keys: Sequence[str] = (), certificate: tuple[str, str] = ("", "")
    ) -> None:
        self._listener = listener
        self._look: Look | None = None
        self._guard = Guard(_starting, keys, ())
        config = uvicorn.Config(
            self._guard,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
        )
        if certificate[0]:
            config.ssl_certfile, key = (os.path.expanduser(p) for p in certificate)
            config.ssl_keyfile = key or None
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises NotReady if the certificate cannot be used."""
        try:
            self._server.config.load()
        except (OSError, ValueError) as e:
            raise NotReady(f"--http-cert and --http-key cannot be used: {e}") from None
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    def open(self, here: Here) -> None:
        """Serve, with these parts of the node."""
        here = replace(here, started=now())
        self._look = Look(here)
        app = _app(here, self._look)
        self._guard.serve(app, [r.path for r in app.routes if isinstance(r, Route)])

    async def stop(self) -> None:
        """Let answers end, for a moment, then close everything. Twice is fine."""
        if self._look is not None:
            self._look.is_stopping = True
        if self._serving is None:
            self._listener.close()
            return
        self._server.should_exit = True
        await asyncio.wait((self._serving,))


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    error = errors.response(NotReady("the node is starting: try again in a moment"))
    if scope["path"] in ("/health", "/v1/health"):
        error = Response(
            b'{"status":"starting"}', 503, {"retry-after": error.headers["retry-after"]}, "application/json"
        )
    await error(scope, receive, send)


def _app(here: Here, look: Look) -> Starlette:
    remembered = Remembered()
    stored = Stored(remembered)
    posts: dict[str, _Handler] = {
        "/chat/completions": Chat(here),
        "/completions": Completions(here),
        "/responses": Responses(here, remembered),
        "/embeddings": Embeddings(here),
    }
    gets = {"/models": look.models, "/models/{name:path}": look.model, "/status": look.status, "/health": look.health}
    gets["/topics/{name:path}"] = look.topic
    gets |= {"/responses/{id}": stored.get, "/responses/{id}/input_items": stored.input_items}

    async def describe(_: Request) -> Response:
        return Response(openapi.document(here.version), media_type="application/json")

    routes = []
    for prefix in ("/v1", ""):  # clients are configured with and without it
        routes += [Route(prefix + path, _endpoint(handler), methods=["POST"]) for path, handler in posts.items()]
        routes += [Route(prefix + path, handler, methods=["GET"]) for path, handler in gets.items()]
        routes.append(Route(prefix + "/responses/{id}", stored.delete, methods=["DELETE"]))
        routes.append(Route(prefix + "/topics/{name:path}", _endpoint(look.forget), methods=["DELETE"]))
    tokens = Tokens(here)
    also: dict[str, _Handler] = {
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
        "/apply-template": tokens.template,
    }
    routes += [Route(path, _endpoint(handler), methods=["POST"]) for path, handler in also.items()]
    routes += _ollamas(here) + _anthropics(here)
    routes += [Route("/metrics", look.metrics), Route("/openapi.json", describe)]
    routes += [Route(path, look.page) for path in PAGES]
    app = Starlette(routes=routes, exception_handlers={ConclaveError: _failed, HTTPException: _refused})
    app.router.redirect_slashes = False  # else `/topics` would be sent to a topic without a name
    return app


def _ollamas(here: Here) -> list[Route]:
    look, answers = ollama.Look(here), ollama.Answers(here)
    posts: dict[str, _Handler] = {
        "/api/chat": answers.chat,
        "/api/generate": answers.generate,
        "/api/embed": look.embed,
        "/api/embeddings": look.embeddings,
        "/api/show": look.show,
    }
    gets: dict[str, _Handler] = {"/api/tags": look.tags, "/api/ps": look.ps, "/api/version": look.version}
    routes = [Route(path, _endpoint(handler, ollama.refused), methods=["POST"]) for path, handler in posts.items()]
    routes += [Route(path, handler, methods=["GET"]) for path, handler in gets.items()]
    methods = ["GET", "POST", "DELETE", "HEAD"]
    return routes + [Route(path, look.unserved, methods=methods) for path in ollama.UNSERVED]


def _anthropics(here: Here) -> list[Route]:
    messages = anthropic.Messages(here)
    posts: dict[str, _Handler] = {"/v1/messages": messages.create, "/v1/messages/count_tokens": messages.count}
    return [Route(path, _endpoint(handler, anthropic.refused), methods=["POST"]) for path, handler in posts.items()]


def _endpoint(handler: _Handler, refused: Callable[[Exception], Response] | None = None) -> _Handler:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as e:
            return await _failed(request, e) if refused is None else refused(e)

    return endpoint


async def _failed(_: Request, error: Exception) -> Response:
    is_model = isinstance(error, NotFound) and error.message.startswith("model ")
    return errors.response(error, "model_not_found" if is_model else None)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        said = f"{request.url.path} is not served here: /openapi.json lists what is"
    elif error.status_code == 405:
        said = f"{request.method} is not for {request.url.path}: /openapi.json lists what is"
    else:
        said = error.detail
    body = errors.of(said, "invalid_request_error")
    return Response(body, error.status_code, error.headers, "application/json")
