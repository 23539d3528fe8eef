"""Pool's servicer: this machine's memory for peers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from node.mesh.identity import peer_id
from node.pool.lender import Lender
from node.v1 import pool_pb2, pool_pb2_grpc

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]


class PoolServicer(pool_pb2_grpc.PoolServicer):
    """On the mesh listener only, so that whoever calls has a certificate of the mesh."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender

    async def Carry(
        self, request_iterator: AsyncIterator[Any], context: _Context
    ) -> AsyncGenerator[pool_pb2.CarryResponse, None]:
        """A loan."""
        borrower = peer_id(context.auth_context())
        async with contextlib.aclosing(self._lender.carry(request_iterator, borrower)) as responses:
            async for response in responses:
                yield response
