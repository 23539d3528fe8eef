"""Nodes that have models: the real servicer on real sockets with mutual TLS, and ones that lie, freeze or die."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from node import wire
from node.api.models import ModelsServicer
from node.api.seam import seam
from node.core.manifest import PIECE, File
from node.download import Choice
from node.mesh.identity import Identity, new_token
from node.mesh.peer import Peer
from node.models.resolve import BUNDLED
from node.models.shared import Shared
from node.v1 import mesh_pb2, mesh_pb2_grpc, models_pb2, models_pb2_grpc, types_pb2

TOKEN = new_token()
NAME = "Tiny-Q4_K_M"
FILE = f"{NAME}.gguf"
MODEL = BUNDLED.read_bytes() + os.urandom(5 * PIECE + 12345)
PIECES = -(-len(MODEL) // PIECE)
CHOICE = Choice(NAME, (File(FILE, len(MODEL)),), ("a" * 10,))


class Models(ModelsServicer):
    """A node's models, and how it misbehaves."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.fetched: list[int] = []
        self.hold_after = 1 << 30  # so many pieces are given, then none until `go`
        self.go = asyncio.Event()
        self.lie = ""
        self.name = FILE

    async def List(self, request: Any, context: Any) -> models_pb2.ModelsListResponse:
        answer = await super().List(request, context)
        for model in answer.models:
            model.files[0].name = self.name
        return answer

    async def Describe(self, request: Any, context: Any) -> models_pb2.ModelsDescribeResponse:
        answer = await super().Describe(request, context)
        if self.lie == "sizes":
            answer.files[0].size += 1
        elif self.lie == "hashes":
            answer.files[0].hashes = answer.files[0].hashes[:-1]
        elif self.lie == "another file":
            answer.files[0].hashes = bytes(len(answer.files[0].hashes))
        elif self.lie == "names":
            answer.files[0].name = "../../evil.gguf"
        return answer

    async def Fetch(self, request: Any, context: Any) -> AsyncGenerator[models_pb2.ModelsFetchResponse, None]:
        self.fetched.append(request.piece)
        if len(self.fetched) > self.hold_after:
            await self.go.wait()
        async with contextlib.aclosing(super().Fetch(request, context)) as parts:
            async for part in parts:
                if self.lie == "bytes":
                    part.data = bytes(len(part.data))
                elif self.lie == "nothing":
                    part.data = b""
                elif self.lie == "short":
                    part.data = part.data[:7]
                yield part
                while self.lie == "endless":
                    yield part


class Mesh(mesh_pb2_grpc.MeshServicer):
    """Status alone."""

    def __init__(self) -> None:
        self.nodes: list[types_pb2.NodeInfo] = []

    async def Status(self, request: Any, context: Any) -> mesh_pb2.StatusResponse:
        return mesh_pb2.StatusResponse(nodes=self.nodes)


@dataclass
class Source:
    """A node with one model."""

    id: str
    models: Models
    mesh: Mesh
    server: grpc.aio.Server
    port: int
    peer: Peer
    file: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def source(path: Path, letter: str = "a", data: bytes = MODEL, port: int = 0) -> AsyncIterator[Source]:
    """A node that has the model in Conclave's own folder."""
    identity = Identity(TOKEN, letter * 10)
    file = path / letter / "data" / "models" / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    models, mesh = Models(Shared({"HOME": str(path / letter)}, path / letter / "data")), Mesh()
    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    models_pb2_grpc.add_ModelsServicer_to_server(models, seam(server))
    mesh_pb2_grpc.add_MeshServicer_to_server(mesh, seam(server))
    port = server.add_secure_port(f"127.0.0.1:{port}", identity.server_credentials())
    await server.start()
    mesh.nodes = [types_pb2.NodeInfo(id=identity.node_id, address=f"127.0.0.1:{port}", state="alive")]
    peer = Peer(Identity(TOKEN, "z" * 10), f"127.0.0.1:{port}", identity.node_id)
    try:
        yield Source(identity.node_id, models, mesh, server, port, peer, file)
    finally:
        await peer.close()
        await server.stop(None)
