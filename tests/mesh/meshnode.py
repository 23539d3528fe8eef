"""Nodes with a real mesh listener (mutual TLS on 127.0.0.1) and nothing behind it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from node import wire
from node.core.members import Change, Kind
from node.errors import ConclaveError
from node.mesh.identity import Identity, peer_id
from node.mesh.mesh import Mesh
from node.types import NodeInfo
from node.v1 import mesh_pb2, mesh_pb2_grpc, vote_pb2, vote_pb2_grpc

HOST = "127.0.0.1"


class Servicer(mesh_pb2_grpc.MeshServicer, vote_pb2_grpc.VoteServicer):
    """What the API layer does for the mesh: takes the caller's id from its certificate, translates errors."""

    def __init__(self) -> None:
        self.mesh: Mesh | None = None
        self.callers: list[str] = []
        self.polled = asyncio.Event()

    async def Hello(self, request: mesh_pb2.HelloRequest, context: Any) -> mesh_pb2.HelloResponse:
        caller = await self._caller(context)
        if self.mesh is None:
            return mesh_pb2.HelloResponse(protocol=1)
        return await self._answer(self.mesh.hello(request, caller, context.peer()), context)

    async def Probe(self, request: mesh_pb2.ProbeRequest, context: Any) -> mesh_pb2.ProbeResponse:
        caller = await self._caller(context)
        assert self.mesh is not None
        return await self._answer(self.mesh.probe(request, caller, context.peer()), context)

    async def Poll(self, request: vote_pb2.PollRequest, context: Any) -> AsyncIterator[vote_pb2.PollResponse]:
        await self._caller(context)
        yield vote_pb2.PollResponse(ballot={"key": "42"})
        self.polled.set()
        await asyncio.sleep(30)
        yield vote_pb2.PollResponse()

    async def _caller(self, context: Any) -> str:
        caller = peer_id(context.auth_context())
        self.callers.append(caller)
        return caller

    async def _answer(self, answer: Awaitable[Any], context: Any) -> Any:
        try:
            return await answer
        except ConclaveError as e:
            await context.abort(wire.status_code(e), e.message)


class Node:
    """A listener and, once `mesh` is used, a Mesh that it serves."""

    def __init__(self, identity: Identity, **options: Any) -> None:
        self.identity = identity
        self.id = identity.node_id
        self.servicer = Servicer()
        self.server = grpc.aio.server(options=wire.SERVER_OPTIONS)
        mesh_pb2_grpc.add_MeshServicer_to_server(self.servicer, self.server)
        vote_pb2_grpc.add_VoteServicer_to_server(self.servicer, self.server)
        self.changes: list[tuple[float, Change]] = []
        self.options = options
        self.port = 0
        self.mesh: Mesh

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    async def listen(self, port: int = 0) -> None:
        self.port = self.server.add_secure_port(f"{HOST}:{port}", self.identity.server_credentials())
        await self.server.start()
        self.mesh = Mesh(
            self.identity, lambda: NodeInfo(id=self.id, address=self.address), interfaces=[HOST], **self.options
        )
        self.mesh.on_change(lambda c: self.changes.append((time.monotonic(), c)))
        self.servicer.mesh = self.mesh

    def sees(self) -> set[str]:
        return {p.id for p in self.mesh.peers()}

    def kinds(self, id: str) -> list[Kind]:
        return [c.kind for _, c in self.changes if c.info.id == id and c.kind is not Kind.UPDATED]

    async def kill(self) -> None:
        """Ends as by kill -9: no goodbye, connections closed by the system."""
        await self.mesh._roster.close()
        await self.server.stop(None)

    async def stop(self) -> None:
        await self.mesh.stop()
        await self.server.stop(None)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a condition; fails after so many seconds, which are more than any machine needs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)
