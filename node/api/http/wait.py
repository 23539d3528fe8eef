"""Answers that take time: whole or streamed, and ended as soon as the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.http import errors

# A stream that says nothing for so long says that it is alive, which clients skip: proxies and clients give up on
# silence (nginx after 60 s), and a long prompt takes minutes on a small machine.
KEEP_ALIVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream says what is no piece of its answer. `idle` is what it says when it has nothing to say."""

    media: bytes
    idle: bytes
    failed: Callable[[Exception], bytes]  # an error after the first piece
    refused: Callable[[Exception], Response]  # an error before it


SSE = Framing(
    b"text/event-stream; charset=utf-8",
    b": still working\n\n",
    lambda e: b"data: " + errors.rendered(e)[1] + b"\n\n",
    errors.response,
)


class Whole(Response):
    """A JSON answer that is worked on until it is there."""

    def __init__(
        self,
        work: Callable[[], Awaitable[bytes]],
        id: str = "",
        refused: Callable[[Exception], Response] = errors.response,
    ) -> None:
        super().__init__(media_type="application/json")
        self._work = work
        self._id = id
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Work, and answer unless the client has left."""

        async def answer() -> None:
            try:
                found = Response(await self._work(), headers=_headers(self._id), media_type="application/json")
            except Exception as e:
                found = self._refused(e)
            await found(scope, receive, send)

        await _unless_left(answer(), receive)


class Stream(Response):
    """Events, as they come. An error before the first one is an answer of its own; later, it is an event."""

    def __init__(
        self,
        pieces: Callable[[], AsyncGenerator[bytes, None]],
        id: str,
        end: bytes = b"data: [DONE]\n\n",
        framing: Framing = SSE,
    ) -> None:
        super().__init__()
        self._framing = framing
        self._id = id
        self._pieces = pieces
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events as they come, and something else when none come."""
        out = _Out(send, self._id, self._framing)

        async def write() -> None:
            try:
                async with contextlib.aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        await out.send(piece)
            except Exception as e:
                if not out.started:
                    await self._framing.refused(e)(scope, receive, send)
                    return
                await out.send(self._framing.failed(e))
            await out.end(self._end)

        await _unless_left(write(), receive, out)


class _Out:
    """The body of a stream on its way out."""

    def __init__(self, send: Send, id: str, framing: Framing) -> None:
        self._send = send
        self._id = id
        self._framing = framing
        self._last = time.monotonic()
        self.started = False

    async def send(self, data: bytes) -> None:
        """Send some of it, the head first."""
        self._last = time.monotonic()
        if not self.started:
            self.started = True
            headers = [
                (b"content-type", self._framing.media),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would collect it otherwise
                *((k.encode(), v.encode("latin-1", "replace")) for k, v in _headers(self._id).items()),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last of it."""
        await self.send(data)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_alive(self) -> None:
        """Say something if nothing was said for long."""
        if time.monotonic() - self._last >= KEEP_ALIVE_S:
            await self.send(self._framing.idle)


def _headers(id: str) -> dict[str, str]:
    """By this id, the logs of all nodes tell of the request. A client may have chosen any text for it."""
    return {"x-request-id": id} if id and id.isascii() else {}


async def _unless_left(work: Any, receive: Receive, out: _Out | None = None) -> None:
    """Work to the end, or until the client leaves; then the work is cancelled, and all candidates with it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(receive))
    try:
        while not task.done():
            every = KEEP_ALIVE_S if out is not None else None
            await asyncio.wait((task, gone), timeout=every, return_when=asyncio.FIRST_COMPLETED)
            if task.done() or gone.done():
                break
            if out is not None:
                await out.keep_alive()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
            raise error


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
