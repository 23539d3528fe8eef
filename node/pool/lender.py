"""What this machine lends: its memory, to one borrower at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from node.errors import BackendError, ConclaveError, InvalidRequest, NotSupported, Overloaded
from node.pool.server import CHUNK, Server
from node.v1 import pool_pb2

log = logging.getLogger(__name__)

MOST_DATA = 1 << 20  # bytes a message
STOPS = "this node stops, and lends no more"
LOOK_S = 2.0  # every peer asks several times a second what we are, and memory changes slower


class Lender:
    """At most `most` bytes of memory (0: nothing is lent) and no more than is `free`, computed on with `threads`;
    borrowers must have the same `version` of llama.cpp. `lent_to` is the id of the node that has it now."""

    def __init__(
        self,
        most: int,
        threads: int,
        version: str,
        free: Callable[[], int] = lambda: 1 << 62,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lent_to = ""
        self._is_member = False  # the borrower was heard of since it borrowed
        self._is_closed = False
        self._most = most
        self._free = free
        self._clock = clock
        self._looked = -LOOK_S
        self._offered = 0
        self._threads = threads
        self._version = version
        self._serving: asyncio.Task[None] | None = None

    @property
    def bytes(self) -> int:
        """What is on offer; while it is lent, what was."""
        if self._most and not self.lent_to and self._clock() - self._looked >= LOOK_S:
            self._offered, self._looked = min(self._most, self._free()), self._clock()
        return self._offered

    def heard(self, node: str, *, alive: bool) -> None:
        """A node is alive, or dead: what that one borrowed is free again, though its connection may not have noticed.

        A borrower joins the mesh when its model is loaded. Until then a death with its name is that of the process
        before it, which was killed.
        """
        if self.lent_to != node or self._serving is None:
            return
        if alive:
            self._is_member = True
        elif self._is_member:
            self._serving.cancel()

    async def close(self) -> None:
        """End the loan, and lend no more. What gRPC would cancel when its server stops ends by itself before that."""
        self._is_closed = True
        if self._serving is not None:
            self._serving.cancel()
        await self._ended()

    async def _ended(self) -> None:
        """Wait, but not for ever, until the memory is lent to nobody."""
        for _ in range(100):
            if not self.lent_to:
                return
            await asyncio.sleep(0.05)

    async def carry(
        self, requests: AsyncIterator[pool_pb2.CarryRequest | ConclaveError], borrower: str
    ) -> AsyncGenerator[pool_pb2.CarryResponse, None]:
        """One borrower's connection, from the loan it asks for to its end. Raises NotSupported, Overloaded,
        InvalidRequest, or BackendError if the server ends first."""
        asked = await anext(requests, None)
        if isinstance(asked, ConclaveError):
            raise asked
        if asked is None or asked.WhichOneof("part") != "loan":
            raise InvalidRequest("a loan is asked for first")
        await self._check(asked.loan, borrower)
        self.lent_to, self._is_member = borrower, False
        server: Server | None = None
        feed: asyncio.Task[None] | None = None
        try:
            server = await Server.start(asked.loan.bytes, self._threads)
            if self._is_closed:
                raise Overloaded(STOPS)
            feed = self._serving = asyncio.create_task(_feed(server, requests))
            # Also when it is cancelled before its first step, where no `finally` of its own would run.
            feed.add_done_callback(functools.partial(_hang_up, server))
            yield pool_pb2.CarryResponse(lent=pool_pb2.Lent(bytes=asked.loan.bytes))
            while data := await _read(server):
                yield pool_pb2.CarryResponse(data=data)
            if not feed.done():
                raise BackendError(f"llama.cpp's RPC server here ended the connection{server.last_words}")
            if not feed.cancelled():
                feed.result()  # what was wrong with what came, if anything was
        finally:
            self.lent_to, self._serving = "", None
            if feed is not None:
                feed.cancel()
            if server is not None:
                await server.stop()

    async def _check(self, loan: pool_pb2.Loan, borrower: str) -> None:
        if self._is_closed:
            raise Overloaded(STOPS)
        if not self.bytes:
            raise NotSupported("this node lends no memory: start it with --pool")
        if loan.version != self._version:
            raise InvalidRequest(
                f"this node lends to {self._version}, the borrower has {loan.version[:80]!r}: install the same version"
            )
        if self.lent_to == borrower and self._serving is not None:  # it was restarted before its connection had ended
            self._serving.cancel()
            await self._ended()
        if self.lent_to:
            raise Overloaded(f"the memory of this node is lent to node {self.lent_to}: ask again when it is back")
        if not 0 < loan.bytes <= self.bytes:
            raise InvalidRequest(f"{loan.bytes} bytes are asked for, and this node lends {self.bytes}")


async def _read(server: Server) -> bytes:
    """What it answers; nothing when it is gone, however it went."""
    try:
        return await server.reader.read(CHUNK)
    except ConnectionError:
        return b""


async def _feed(server: Server, requests: AsyncIterator[pool_pb2.CarryRequest | ConclaveError]) -> None:
    """What the borrower sends goes to the server."""
    try:
        async for request in requests:
            if isinstance(request, ConclaveError):
                raise request
            if len(request.data) > MOST_DATA or request.WhichOneof("part") != "data":
                raise InvalidRequest(f"after the loan only data is sent, at most {MOST_DATA} bytes at once")
            server.writer.write(request.data)
            await server.writer.drain()
    except ConnectionError:
        log.debug("the RPC server is gone%s", server.last_words)


def _hang_up(server: Server, _: asyncio.Task[None]) -> None:
    """The end of what the borrower sends is the end of what it reads."""
    with contextlib.suppress(OSError):
        server.writer.close()
