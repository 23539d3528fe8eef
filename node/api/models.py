"""Models' servicer: this machine's model files, for peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from node import wire
from node.core.manifest import PIECE
from node.errors import Overloaded
from node.models.shared import Shared
from node.v1 import models_pb2, models_pb2_grpc

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")
CHUNK = 1 << 20  # bytes; a message costs 0.3 ms at both ends
MOST_FETCHES = 16  # at a time, of all peers: each holds a part of a piece in memory
MOST_DESCRIPTIONS = 2  # that run or wait: each may read a whole model
THREADS = 4  # of their own: what reads models for others must not hold up what this node reads and writes


class ModelsServicer(models_pb2_grpc.ModelsServicer):
    """Models: on the mesh listener only."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._threads = ThreadPoolExecutor(THREADS, "models")
        self._fetches = 0
        self._descriptions = 0

    async def List(self, request: models_pb2.ModelsListRequest, context: _Context) -> models_pb2.ModelsListResponse:
        """What is here."""
        offers = await self._run(self._shared.offers)
        return models_pb2.ModelsListResponse(
            models=[models_pb2.ModelOffer(name=o.name, files=[wire.model_file_pb(f) for f in o.files]) for o in offers]
        )

    async def Describe(
        self, request: models_pb2.ModelsDescribeRequest, context: _Context
    ) -> models_pb2.ModelsDescribeResponse:
        """A model's hashes."""
        if self._descriptions >= MOST_DESCRIPTIONS:
            raise Overloaded("this node describes other models now: try again later")
        self._descriptions += 1
        try:
            found = await self._run(self._shared.describe, request.name)
        finally:
            self._descriptions -= 1
        return models_pb2.ModelsDescribeResponse(files=[wire.model_file_pb(f) for f in found.files])

    async def Fetch(
        self, request: models_pb2.ModelsFetchRequest, context: _Context
    ) -> AsyncGenerator[models_pb2.ModelsFetchResponse, None]:
        """A piece."""
        if self._fetches >= MOST_FETCHES:
            raise Overloaded("this node gives as much as it can to others now: try again later")
        self._fetches += 1
        try:
            for start in range(0, PIECE, CHUNK):
                data = await self._run(self._shared.read, request.digest, request.piece, start, CHUNK)
                if not data:
                    return
                yield models_pb2.ModelsFetchResponse(data=data)
        finally:
            self._fetches -= 1

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
