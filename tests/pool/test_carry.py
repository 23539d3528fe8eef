"""Carrying a connection over the mesh: whole, only for the mesh, only for this process, to one borrower at a time.

The server at the lender's end is an echo, so that no llama.cpp with RPC is needed.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import grpc
import pytest
import pytest_asyncio

from node import wire
from node.api.pool import PoolServicer
from node.api.seam import seam
from node.errors import ConclaveError, InvalidRequest, NotSupported, Overloaded, PeerUnavailable, Unauthenticated
from node.mesh.identity import Identity, new_token
from node.mesh.peer import Peer
from node.pool import lender as lending
from node.pool.lender import MOST_DATA, Lender
from node.pool.loan import Loan
from node.v1 import pool_pb2, pool_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="session")

GIB, VERSION, TOKEN = 1 << 30, "llama 1", new_token()


class Echo:
    """A server that sends back what it gets."""

    last_words = ": it was an echo"
    running: ClassVar[list["Echo"]] = []

    @classmethod
    async def start(cls, lent: int, threads: int) -> "Echo":
        self = cls()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

        self.listener = await asyncio.start_server(echo, "127.0.0.1", 0)
        self.reader, self.writer = await asyncio.open_connection(*self.listener.sockets[0].getsockname())
        cls.running.append(self)
        return self

    async def stop(self) -> None:
        self.writer.close()
        self.listener.close()
        self.running.remove(self)


@dataclass
class House:
    """A lender behind a mesh listener, and what borrowers of it are told."""

    lender: Lender
    address: str
    server: grpc.aio.Server
    lost: list[str] = field(default_factory=list)
    loans: list[Loan] = field(default_factory=list)

    async def borrow(self, size: int = GIB, *, who: str = "b", token: str = TOKEN, version: str = VERSION) -> str:
        """A loan by the node `who`; its endpoint."""
        peer = Peer(Identity(token, who * 10), self.address, "a" * 10)
        loan = Loan(peer, size, version, lambda e: self.lost.append(e.message))
        self.loans.append(loan)
        return await loan.open()


@pytest_asyncio.fixture(loop_scope="session")
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(lending, "Server", Echo)
    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    lender = Lender(2 * GIB, 2, VERSION)
    pool_pb2_grpc.add_PoolServicer_to_server(PoolServicer(lender), seam(server))
    port = server.add_secure_port("127.0.0.1:0", Identity(TOKEN, "a" * 10).server_credentials())
    await server.start()
    made = House(lender, f"127.0.0.1:{port}", server)
    yield made
    await asyncio.gather(*(loan.close() for loan in made.loans))
    await server.stop(None)
    await until(lambda: not Echo.running)  # whatever a test did, no server outlives its loan


async def until(condition: Callable[[], object], within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # conditions of several kinds, none with an event
            await asyncio.sleep(0.01)


async def connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = endpoint.split(":")
    return await asyncio.open_connection(host, int(port))


async def test_bytes_arrive_whole_and_in_order_both_ways(house: House) -> None:
    reader, writer = await connect(await house.borrow())
    assert house.lender.lent_to == "b" * 10
    sent = os.urandom(24 << 20)

    async def send() -> None:
        for at in range(0, len(sent), 300_001):
            writer.write(sent[at : at + 300_001])
            await writer.drain()

    sending = asyncio.create_task(send())
    assert await reader.readexactly(len(sent)) == sent
    await sending
    assert house.loans[0].sent == len(sent)
    writer.close()


async def test_the_port_takes_one_connection_and_is_closed(house: House) -> None:
    endpoint = await house.borrow()
    _, writer = await connect(endpoint)
    await until(lambda: house.loans[0]._connected.done())
    with pytest.raises(ConnectionRefusedError):
        await connect(endpoint)
    writer.close()


async def test_another_process_is_turned_away(house: House) -> None:
    endpoint = await house.borrow()
    host, port = endpoint.split(":")
    stranger = f"import socket; s = socket.create_connection(('{host}', {port})); s.sendall(b'x'); print(s.recv(1))"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", stranger], capture_output=True, text=True, timeout=60
    )
    assert "b'x'" not in done.stdout  # closed, or reset: never an echo
    reader, writer = await connect(endpoint)  # the port still waits for its own
    writer.write(b"ours")
    assert await reader.readexactly(4) == b"ours"
    writer.close()


async def test_closing_gives_the_memory_back(house: House) -> None:
    await house.borrow()
    with pytest.raises(Overloaded, match=f"lent to node {'b' * 10}"):
        await house.borrow(who="c")
    await house.loans[0].close()
    await until(lambda: not house.lender.lent_to)
    await house.borrow(who="c")
    assert house.lender.lent_to == "c" * 10
    assert house.lost == []


async def test_a_borrower_that_comes_back_gets_it_again(house: House) -> None:
    """Its old connection may hang for as long as TCP thinks."""
    await house.borrow()
    await house.borrow()
    await until(lambda: len(Echo.running) == 1 and house.lender.lent_to == "b" * 10)


async def test_a_dead_borrower_is_forgotten(house: House) -> None:
    """But not for the death of the process that it was before, which others notice while it loads."""
    await house.borrow()
    for node, alive in (("b", False), ("z", True), ("z", False), ("b", True), ("z", False)):
        house.lender.heard(node * 10, alive=alive)
    await asyncio.sleep(0.1)
    assert house.lender.lent_to
    house.lender.heard("b" * 10, alive=False)
    await until(lambda: not house.lender.lent_to)
    await until(lambda: house.lost)


async def test_a_lender_that_stops_ends_its_loan_itself(house: House) -> None:
    """Before gRPC's server would cancel the call, which it may complain of on the terminal."""
    await house.borrow()
    await house.lender.close()
    assert not house.lender.lent_to
    await until(lambda: house.lost)
    with pytest.raises(Overloaded, match="this node stops"):
        await house.borrow(who="c")
    await house.lender.close()


async def test_a_lender_may_stop_at_once_after_it_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the task that feeds the server took its first step."""
    monkeypatch.setattr(lending, "Server", Echo)
    lender = Lender(2 * GIB, 2, VERSION)

    async def ask() -> AsyncIterator[pool_pb2.CarryRequest | ConclaveError]:
        yield pool_pb2.CarryRequest(loan=pool_pb2.Loan(bytes=GIB, version=VERSION))
        await asyncio.Event().wait()

    carried = lender.carry(ask(), "b" * 10)
    assert (await anext(carried)).lent.bytes == GIB
    closing = asyncio.create_task(lender.close())
    async with asyncio.timeout(60):
        assert await anext(carried, None) is None
        await closing
    assert not lender.lent_to


async def test_the_end_of_the_lender_is_told_once_and_not_to_llama_cpp(house: House) -> None:
    """Whose connection stays open: it would end the process."""
    reader, writer = await connect(await house.borrow())
    await until(lambda: house.loans[0]._connected.done())
    await house.server.stop(None)
    await until(lambda: house.lost)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    assert len(house.lost) == 1
    writer.close()


async def test_the_end_of_the_server_process_is_told_with_its_last_words(house: House) -> None:
    _, writer = await connect(await house.borrow())
    await until(lambda: house.loans[0]._connected.done())
    [server] = Echo.running
    server.reader.feed_eof()
    await until(lambda: house.lost)
    assert "it was an echo" in house.lost[0]
    writer.close()


REFUSED: list[tuple[type[ConclaveError], str, dict[str, object]]] = [
    (InvalidRequest, "this node lends", {"size": 3 * GIB}),
    (InvalidRequest, "are asked for", {"size": 0}),
    (InvalidRequest, "install the same version", {"version": "llama 2"}),
    (Unauthenticated, "another mesh", {"token": new_token()}),
]


@pytest.mark.parametrize(("error", "match", "asked"), REFUSED)
async def test_what_is_refused(house: House, error: type[ConclaveError], match: str, asked: dict[str, object]) -> None:
    with pytest.raises(error, match=match):
        await house.borrow(**asked)  # type: ignore[arg-type]
    assert house.lender.lent_to == ""
    await house.borrow()  # and whoever asks properly gets it


async def test_a_node_without_pool_lends_nothing(house: House) -> None:
    house.lender._most = 0
    with pytest.raises(NotSupported, match="start it with --pool"):
        await house.borrow()


async def test_what_is_on_offer_follows_what_is_free() -> None:
    """Looked at every few seconds; while it is lent it is not free, and yet what was lent."""
    now, free = 0.0, 3 * GIB
    lender = Lender(2 * GIB, 1, VERSION, lambda: free, lambda: now)
    assert lender.bytes == 2 * GIB
    free = GIB
    assert lender.bytes == 2 * GIB
    now += lending.LOOK_S
    assert lender.bytes == GIB
    lender.lent_to, free = "b" * 10, 0
    now += lending.LOOK_S
    assert lender.bytes == GIB
    lender.lent_to = ""
    assert lender.bytes == 0
    assert Lender(0, 1, VERSION, lambda: free, lambda: now).bytes == 0


async def test_without_a_certificate_nobody_gets_in(house: House) -> None:
    for credentials in (None, grpc.ssl_channel_credentials()):
        channel = (
            grpc.aio.insecure_channel(house.address)
            if credentials is None
            else grpc.aio.secure_channel(house.address, credentials)
        )
        async with channel:
            asked = iter([pool_pb2.CarryRequest(loan=pool_pb2.Loan(bytes=1, version=VERSION))])
            call = pool_pb2_grpc.PoolStub(channel).Carry(asked, timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert house.lender.lent_to == ""


@pytest.mark.parametrize(
    "messages",
    [
        [pool_pb2.CarryRequest(data=b"no loan")],
        [pool_pb2.CarryRequest()],
        [],
        [pool_pb2.CarryRequest(loan=pool_pb2.Loan(bytes=1, version=VERSION))] * 2,
        [
            pool_pb2.CarryRequest(loan=pool_pb2.Loan(bytes=1, version=VERSION)),
            pool_pb2.CarryRequest(data=bytes(MOST_DATA + 1)),
        ],
    ],
)
async def test_what_is_no_loan_ends_the_stream(house: House, messages: list[pool_pb2.CarryRequest]) -> None:
    peer = Peer(Identity(TOKEN, "b" * 10), house.address, "a" * 10)

    async def requests() -> AsyncIterator[pool_pb2.CarryRequest]:
        for message in messages:
            yield message

    async def listen() -> None:
        async for _ in peer.carry(requests()):
            pass

    with pytest.raises((InvalidRequest, PeerUnavailable)):
        await asyncio.wait_for(listen(), 60)
    await peer.close()
    await until(lambda: not house.lender.lent_to and not Echo.running)
