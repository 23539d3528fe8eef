"""Nodes in one process: engines with the bundled model, and their KVSync on real sockets with mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from node import wire
from node.api.kvsync import KVSyncServicer
from node.api.rpc import VoteServicer
from node.api.seam import seam
from node.coordinator import Coordinator
from node.core.members import Change, Kind
from node.engine.backend import Backend
from node.engine.engine import Engine
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.mesh.identity import Identity, new_token
from node.mesh.peer import Peer
from node.models.resolve import BUNDLED
from node.replicator import Options, Replicator
from node.store import Blocks, Store
from node.types import GenerateRequest, GenerateResult, Message, NodeInfo, SamplingParams, Scope, Strategy
from node.v1 import kvsync_pb2_grpc, vote_pb2_grpc

TOKEN = new_token()


@dataclass
class Mesh:
    """What a node sees of the others; a test cuts and heals it."""

    peers_: dict[str, Peer] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)

    def peers(self) -> list[Peer]:
        return [peer for id, peer in sorted(self.peers_.items()) if id not in self.away]


@dataclass
class Node:
    id: str
    engine: Engine
    store: Store
    blocks: Blocks
    mesh: Mesh
    replicator: Replicator
    coordinator: Coordinator
    address: str = ""
    calls: Counter[str] = field(default_factory=Counter)  # that came from others, by method

    async def say(self, text: str, topic: str = "t", **fields: Any) -> GenerateResult:
        """A turn, greedy, by this node alone."""
        fields = {"append": self.store.version(topic).turn > 0} | fields
        request = GenerateRequest(
            (Message("user", text),),
            topic=topic,
            candidates=1,
            strategy=Strategy.FASTEST,
            scope=Scope.LOCAL,
            params=SamplingParams(temperature=0.0, max_tokens=fields.pop("max_tokens", 64)),
            **fields,
        )
        return await self.coordinator.generate(request)

    async def settled(self) -> None:
        """Wait until nothing is on its way to the others."""
        async with asyncio.timeout(60):
            while self.replicator._waiting or len(self.replicator._tasks) > 3 or self.replicator._unequal.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def meet(*nodes: Node) -> None:
    """All see all again, and are told so."""
    for node in nodes:
        came = node.mesh.away & {n.id for n in nodes}
        node.mesh.away -= came
        for id in came:
            node.replicator.on_change(Change(Kind.JOINED, NodeInfo(id, "", fingerprint=node.engine.info.fingerprint)))


def part(*nodes: Node) -> None:
    """None of these sees another any more."""
    for node in nodes:
        node.mesh.away |= {n.id for n in nodes if n is not node}


class Counts(grpc.aio.ServerInterceptor):
    """Counts the calls that come to a server."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        self.calls[details.method.rpartition("/")[2]] += 1
        return await continuation(details)


def backend(fingerprint: str = "fp", **options: Any) -> Callable[[], LlamaBackend]:
    given = {"sequences": 4, "context": 1024, "threads": 1} | options
    return lambda: LlamaBackend(LlamaOptions(BUNDLED, "demo", fingerprint, **given))


@contextlib.asynccontextmanager
async def nodes(
    path: Path,
    count: int,
    options: Options | None = None,
    disk: int = 64 << 20,
    make: Callable[[], Backend] | None = None,
    **more: Any,
) -> AsyncIterator[list[Node]]:
    """Nodes that see each other."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                _node(path / f"n{i}", "abcd"[i] * 16, options, disk, make or backend(**more))
            )
            for i in range(count)
        ]
        for node in made:
            for other in made:
                if other is not node:
                    peer = Peer(Identity(TOKEN, node.id), other.address, other.id)
                    peer.info = replace(peer.info, fingerprint=other.engine.info.fingerprint)
                    node.mesh.peers_[other.id] = peer
                    stack.push_async_callback(peer.close)
        yield made
        for node in made:
            await node.replicator.stop()


@contextlib.asynccontextmanager
async def _node(
    path: Path, id: str, options: Options | None, disk: int, make: Callable[[], Backend]
) -> AsyncIterator[Node]:
    engine = Engine(make, node=id, memory=64 << 20)
    await engine.start()
    store, blocks, mesh = Store(path / "topics", node=id), Blocks(path / "kv", disk), Mesh()
    store.load()
    replicator = Replicator(id, engine, mesh, store, blocks, options)
    await replicator.start()
    coordinator = Coordinator(id, engine, mesh, store, replicator=replicator)
    counts = Counts()
    server = grpc.aio.server(interceptors=[counts], options=wire.SERVER_OPTIONS)
    sync = KVSyncServicer(replicator, is_mesh=True, won=coordinator.won, note=coordinator.claims.note)
    kvsync_pb2_grpc.add_KVSyncServicer_to_server(sync, seam(server))
    vote_pb2_grpc.add_VoteServicer_to_server(VoteServicer(coordinator), seam(server))
    port = server.add_secure_port("127.0.0.1:0", Identity(TOKEN, id).server_credentials())
    await server.start()
    try:
        yield Node(id, engine, store, blocks, mesh, replicator, coordinator, f"127.0.0.1:{port}", counts.calls)
    finally:
        await coordinator.stop()
        await replicator.stop()
        await server.stop(None)
        await engine.close()
        store.close()
