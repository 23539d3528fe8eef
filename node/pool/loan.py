"""One lender's memory as a port of loopback, to which llama.cpp connects.

The port is open until llama.cpp's one connection is made, and takes it from this process only: who else connects is
turned away. The other end is the lender's server; the bytes go over the mesh's mTLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable

from node.errors import BackendError, ConclaveError, PeerUnavailable
from node.mesh.peer import Peer
from node.v1 import pool_pb2

GRANT_S = 60.0  # the lender starts a process
CHUNK = 512 << 10


class Loan:
    """`bytes` of the memory of a peer, which is closed with the loan. `lost` is told once if it ends before `close`.

    llama.cpp would abort the process if its connection broke; so that stays open, and silent, whatever becomes of the
    lender, until the process has ended otherwise.
    """

    def __init__(self, peer: Peer, bytes: int, version: str, lost: Callable[[ConclaveError], None]) -> None:
        self._peer = peer
        self._asked = pool_pb2.Loan(bytes=bytes, version=version)
        self._lost = lost
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        self._listener: asyncio.Server | None = None
        self._carrying: asyncio.Task[None] | None = None
        self._handle = -1
        self._is_lost = False
        self.sent = 0  # bytes, to the lender

    async def open(self) -> str:
        """Take the loan; 127.0.0.1:PORT for llama.cpp. Raises what the lender answers, or PeerUnavailable."""
        self._carrying = asyncio.create_task(self._carry())
        try:
            await asyncio.wait_for(asyncio.shield(self._granted), GRANT_S)
        except TimeoutError:
            raise PeerUnavailable(f"node {self._peer.id} did not grant its memory within {GRANT_S:.0f} s") from None
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK, backlog=1)
        port: int = self._listener.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connected.done() or not is_of_this_process(writer.get_extra_info("peername")):
            writer.close()
            return
        if self._listener is not None:
            self._listener.close()
        # One more handle, which nothing closes by chance, not even the end of Python.
        self._handle = os.dup(writer.get_extra_info("socket").fileno())
        self._connected.set_result((reader, writer))

    async def _requests(self) -> AsyncGenerator[pool_pb2.CarryRequest, None]:
        yield pool_pb2.CarryRequest(loan=self._asked)
        reader, _ = await asyncio.shield(self._connected)
        while data := await reader.read(CHUNK):
            self.sent += len(data)
            yield pool_pb2.CarryRequest(data=data)

    async def _carry(self) -> None:
        error: ConclaveError = PeerUnavailable(f"node {self._peer.id} ended the loan")
        try:
            async with contextlib.aclosing(self._peer.carry(self._requests())) as responses:
                async for response in responses:
                    if response.WhichOneof("part") == "lent":
                        if not self._granted.done():
                            self._granted.set_result(None)
                        continue
                    _, writer = await asyncio.shield(self._connected)
                    writer.write(response.data)
                    await writer.drain()
        except ConclaveError as e:
            error = e
        except ConnectionError:
            error = BackendError("llama.cpp closed its connection to the lender")
        if self._granted.done():
            self._is_lost = True
            self._lost(error)
        else:
            self._granted.set_exception(error)

    async def close(self) -> None:
        """Give the memory back. If it was lost, llama.cpp's connection is left open."""
        if self._carrying is not None:
            self._carrying.cancel()
            await asyncio.gather(self._carrying, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if not self._connected.done():
            self._connected.cancel()
        elif self._handle >= 0:
            self._connected.result()[1].close()
            if not self._is_lost:
                os.close(self._handle)
            self._handle = -1
        await self._peer.close()


def is_of_this_process(address: object) -> bool:
    """Whether a TCP socket of this very process has this local address."""
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.family == socket.AF_INET and found.getsockname() == address:
                        return True
    return False
