"""KVSync's servicer: replication for peers, and what people may see and do of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from node import tracing, wire
from node.errors import ConclaveError, InvalidRequest, Unauthenticated
from node.mesh.identity import peer_id
from node.replicator import Replicator
from node.v1 import kvsync_pb2, kvsync_pb2_grpc

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]


class KVSyncServicer(kvsync_pb2_grpc.KVSyncServicer):
    """All of it for peers (`is_mesh`); List, Show and Forget for clients.

    `won` is told the ids of the request and the winner when another node's turn comes, which is its vote's outcome;
    `note` that a node was given a request, and says which others were.
    """

    def __init__(
        self,
        replicator: Replicator,
        *,
        is_mesh: bool,
        won: Callable[[str, int], None] = lambda *_: None,
        note: Callable[[str, str], Sequence[str]] = lambda *_: (),
    ) -> None:
        self._replicator = replicator
        self._is_mesh = is_mesh
        self._won = won
        self._note = note

    async def Append(self, request: kvsync_pb2.AppendRequest, context: _Context) -> kvsync_pb2.AppendResponse:
        """A turn."""
        self._for_peers()
        if request.version.node_id == peer_id(context.auth_context()):
            self._won(request.request_id, request.reply.winner)
        with tracing.span("append", kind=tracing.SERVER):
            return await self._replicator.append(request)

    async def Offer(self, request: kvsync_pb2.OfferRequest, context: _Context) -> kvsync_pb2.OfferResponse:
        """A snapshot's header."""
        self._for_peers()
        return await self._replicator.offer(request.header)

    async def Push(self, request_iterator: AsyncIterator[Any], context: _Context) -> kvsync_pb2.PushResponse:
        """A snapshot."""
        self._for_peers()
        return await self._replicator.push(_messages(request_iterator), peer_id(context.auth_context()))

    async def Pull(
        self, request: kvsync_pb2.PullRequest, context: _Context
    ) -> AsyncGenerator[kvsync_pb2.PullResponse, None]:
        """What the caller lacks of a topic."""
        self._for_peers()
        caller = peer_id(context.auth_context())
        if request.request_id and (others := self._note(wire.name("request_id", request.request_id), caller)):
            yield kvsync_pb2.PullResponse(given=kvsync_pb2.Given(nodes=others))
        async with contextlib.aclosing(self._replicator.pull(request, caller)) as parts:
            async for part in parts:
                yield part

    async def Measure(
        self, request: kvsync_pb2.MeasureRequest, context: _Context
    ) -> AsyncGenerator[kvsync_pb2.MeasureResponse, None]:
        """Bytes without a meaning."""
        self._for_peers()
        async with contextlib.aclosing(self._replicator.measure(request.bytes)) as parts:
            async for part in parts:
                yield part

    async def List(self, request: kvsync_pb2.ListRequest, context: _Context) -> kvsync_pb2.ListResponse:
        """The topics held."""
        topics = self._replicator.topics(tombstones=self._is_mesh)
        present = None if self._is_mesh else self._replicator.present()
        return kvsync_pb2.ListResponse(topics=[wire.topic_pb(t, present) for t in topics])

    async def Show(self, request: kvsync_pb2.ShowRequest, context: _Context) -> kvsync_pb2.ShowResponse:
        """One topic."""
        info, messages, branches, tokens = self._replicator.show(_topic(request.topic))
        return kvsync_pb2.ShowResponse(
            info=wire.topic_pb(info, None if self._is_mesh else self._replicator.present()),
            messages=[wire.message_pb(m) for m in messages],
            branches=[
                kvsync_pb2.Branch(version=wire.version_pb(v), messages=[wire.message_pb(m) for m in said])
                for v, said in branches
            ],
            snapshot_tokens=tokens,
        )

    async def Forget(self, request: kvsync_pb2.ForgetRequest, context: _Context) -> kvsync_pb2.ForgetResponse:
        """A topic goes, everywhere."""
        version, nodes = await self._replicator.forget(_topic(request.topic))
        return kvsync_pb2.ForgetResponse(version=wire.version_pb(version), nodes=nodes)

    def _for_peers(self) -> None:
        if not self._is_mesh:
            raise Unauthenticated("this call is for nodes of the mesh, on the mesh listener, with a certificate")


async def _messages(
    parts: AsyncIterator[kvsync_pb2.PushRequest | ConclaveError],
) -> AsyncGenerator[kvsync_pb2.PushRequest, None]:
    async for part in parts:
        if isinstance(part, ConclaveError):  # of the seam: bytes that are no message
            raise part
        yield part


def _topic(text: str) -> str:
    if not text:
        raise InvalidRequest("topic is empty: give its name")
    return wire.name("topic", text)
