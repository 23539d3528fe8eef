"""A gateway over a fake model on loopback, and a client of a few lines that speaks HTTP/1.1 to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import h11

from node import wire
from node.api.http import Gateway, bind
from node.api.http.here import Here
from node.coordinator import Coordinator
from node.core.log import Entry
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.store import Store
from node.types import NodeInfo, Version

OURS = "a" * 16
SLOW = FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=200)


class Mesh:
    """What the gateway needs of `node.mesh.mesh.Mesh`."""

    mesh_id = "mesh-1"
    notices = ()

    def __init__(self, *peers: Any) -> None:
        self._peers = list(peers)

    def peers(self) -> list[Any]:
        return self._peers

    def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(OURS, "127.0.0.1:7421", name="me", model="fake")]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def events(self) -> list[Any]:
        """The events of a stream; the last one, [DONE], as text."""
        found = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [f if f == "[DONE]" else json.loads(f) for f in found]


@dataclass
class Web:
    """A gateway, and what is behind it."""

    port: int
    engine: Engine
    store: Store
    gateway: Gateway

    async def open(self, method: str, path: str, body: Any = None, **headers: str) -> Conversation:
        """Send a request; the answer is for the test to read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", "content-length": str(len(data))}
        sent |= {k.replace("_", "-"): v for k, v in headers.items()}
        connection = h11.Connection(h11.CLIENT)
        head = h11.Request(method=method, target=path, headers=list(sent.items()))
        with contextlib.suppress(ConnectionError):  # refused before it was read
            for event in (head, h11.Data(data=data), h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            await writer.drain()
        return Conversation(reader, writer, connection)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A request and its whole answer."""
        conversation = await self.open(method, path, body, **headers)
        try:
            async with asyncio.timeout(60):
                return await conversation.rest()
        finally:
            await conversation.close()

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.call("POST", path, body, **headers)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, **headers)

    async def free(self, count: int = 16) -> None:
        """Wait until so many sequences are free."""
        async with asyncio.timeout(60):
            while self.engine.free_sequences < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def busy(self) -> None:
        """Wait until a sequence is not."""
        async with asyncio.timeout(60):
            while self.engine.free_sequences == 16:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@dataclass
class Conversation:
    """One connection with one request on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: h11.Connection

    async def event(self) -> Any:
        while True:
            event = self.connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.connection.receive_data(await self.reader.read(65536))

    async def rest(self) -> Answer:
        head = await self.event()
        pieces = []
        while isinstance(event := await self.event(), h11.Data):
            pieces.append(bytes(event.data))
        headers = {k.decode(): v.decode() for k, v in head.headers}
        return Answer(head.status_code, headers, b"".join(pieces), pieces)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def web(
    spec: FakeSpec | None = None,
    queue_limit: int = 64,
    keys: tuple[str, ...] = (),
    peers: tuple[Any, ...] = (),
    backend: type[FakeBackend] = FakeBackend,
    **options: Any,
) -> AsyncIterator[Web]:
    engine = Engine(lambda: backend(spec or FakeSpec()), node=OURS, queue_limit=queue_limit)
    await engine.start()
    store, mesh = Store(), Mesh(*peers)
    coordinator = Coordinator(OURS, engine, mesh, store, **options)

    async def forget(topic: str) -> tuple[Version, list[str]]:
        turn = store.log(topic).head.turn
        await store.add(topic, Entry(Version(turn + 1, OURS), forgotten=True))
        return Version(turn + 1, OURS), []

    here = Here(OURS, coordinator, engine, mesh, store, wire.Defaults(), "1.2.3", forget)  # type: ignore[arg-type]
    listener = bind("127.0.0.1", 0)
    gateway = Gateway(listener, keys)
    await gateway.start()
    gateway.open(here)
    try:
        yield Web(listener.getsockname()[1], engine, store, gateway)
    finally:
        await gateway.stop()
        listener.close()
        await coordinator.stop()
        await engine.close()


def asked(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | fields
