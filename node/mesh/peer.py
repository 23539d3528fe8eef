"""One peer: its channel, its stubs, and what a failed call to it means in one line."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from node import tracing, wire
from node.errors import ConclaveError, DeadlineExceeded, NotSupported, PeerUnavailable, Unauthenticated
from node.mesh.identity import ANY_NODE, Identity, server_name
from node.mesh.interfaces import dialled
from node.types import NodeInfo
from node.v1 import (
    generate_pb2_grpc,
    kvsync_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    models_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    vote_pb2,
    vote_pb2_grpc,
)

_T = TypeVar("_T")


class Peer:
    """A connection to the node at `address`, pinned to `node_id` by its certificate (to any node of the mesh if "").

    Calls raise PeerUnavailable (nobody answers, or the stream broke), Unauthenticated (another mesh), or
    what the peer itself answered. Times `timeout_s` are seconds. `on_broken` is told the id when a call finds the peer
    gone, `on_free` how many sequences it has free when a poll is over. `info` and `round_trip_ms` (0: not measured) are
    kept up to date by the mesh. `kvsync` and `generate` are bare stubs for the other layers, whose calls go through
    `call`.
    """

    def __init__(
        self,
        identity: Identity,
        address: str,
        node_id: str = "",
        on_broken: Callable[[str], None] = lambda _: None,
        on_free: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        self.id = node_id
        self.address = address
        self.info = NodeInfo(id=node_id, address=address)
        self.round_trip_ms = 0.0
        self.expires = identity.leaf().expires
        self._on_broken = on_broken
        self._on_free = on_free
        self._closed = False
        self._is_streaming = False  # whether it knows Poll only
        self._state = grpc.ChannelConnectivity.IDLE
        self._identity = identity
        self._channel = self._open()
        self._bulk: grpc.aio.Channel | None = None
        self.mesh = mesh_pb2_grpc.MeshStub(self._channel)
        self.vote = vote_pb2_grpc.VoteStub(self._channel)
        self.kvsync = kvsync_pb2_grpc.KVSyncStub(self._channel)
        self.generate = generate_pb2_grpc.GenerateStub(self._channel)

    def _open(self, *options: tuple[str, int | str]) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            dialled(self.address),
            self._identity.channel_credentials(),
            options=[
                *wire.CHANNEL_OPTIONS,
                *options,
                ("grpc.ssl_target_name_override", server_name(self.id) if self.id else ANY_NODE),
            ],
        )

    def __repr__(self) -> str:
        return f"Peer({self.id or '?'} at {self.address})"

    async def hello(self, request: mesh_pb2.HelloRequest, timeout_s: float = 2.0) -> mesh_pb2.HelloResponse:
        """Introduces us; the time for connecting is included."""
        return await self.call(self.mesh.Hello, request, timeout_s)

    async def probe(self, request: mesh_pb2.ProbeRequest, timeout_s: float) -> mesh_pb2.ProbeResponse:
        """Asks for a sign of life; a direct one measures the round trip."""
        started = time.perf_counter()
        response = await self.call(self.mesh.Probe, request, timeout_s)
        if not request.target:
            took = (time.perf_counter() - started) * 1000
            # Smoothed as TCP smooths its own, and never held up by one that waited for a connection.
            self.round_trip_ms = took if not self.round_trip_ms else 0.8 * self.round_trip_ms + 0.2 * took
        return response

    async def decide(self, request: vote_pb2.DecideRequest, timeout_s: float = 5.0) -> vote_pb2.DecideResponse:
        """Tells the outcome of a vote."""
        return await self.call(self.vote.Decide, request, timeout_s)

    async def claim(self, request_id: str, *, waits: bool, timeout_s: float) -> bool:
        """Claims a request: whether the peer goes first. With `waits` it answers when that is over."""
        request = vote_pb2.ClaimRequest(request_id=request_id, waits=waits)
        return (await self.call(self.vote.Claim, request, timeout_s)).wait

    async def poll(
        self, request: vote_pb2.PollRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        """The peer's local phase, event by event. Closing the iterator cancels its candidates."""
        if len(request.candidates) == 1 and not request.texts and not self._is_streaming:
            try:
                yield await self._cast(request, timeout_s)
                return
            except NotSupported:  # an older node
                self._is_streaming = True
        call: grpc.aio.UnaryStreamCall[vote_pb2.PollRequest, vote_pb2.PollResponse] | None = None
        try:
            while True:
                async with self._translated(own_timeout=False):
                    call = call or self.vote.Poll(request, timeout=timeout_s, metadata=tracing.metadata())
                    response = await call.read()
                if not isinstance(response, vote_pb2.PollResponse):  # grpc.aio.EOF
                    return
                if response.ballots.HasField("tally"):
                    self._on_free(self.id, response.ballots.free_sequences)
                yield response
        finally:
            if call is not None and not call.done():
                call.cancel()

    async def _cast(self, request: vote_pb2.PollRequest, timeout_s: float | None) -> vote_pb2.PollResponse:
        """The same for one candidate, in one message."""
        async with self._translated(own_timeout=False):
            asked = vote_pb2.CastRequest(poll=request)
            answer = await self.vote.Cast(asked, timeout=timeout_s, metadata=tracing.metadata())
        self._on_free(self.id, answer.ballots.free_sequences)
        return vote_pb2.PollResponse(ballots=answer.ballots)

    async def call(self, method: Callable[..., Awaitable[_T]], request: object, timeout_s: float) -> _T:
        """A unary call of one of the stubs, such as `peer.kvsync.Append`, with its failure as one of our errors."""
        async with self._translated(own_timeout=True):
            return await method(request, timeout=timeout_s, metadata=tracing.metadata())

    @property
    def bulk(self) -> kvsync_pb2_grpc.KVSyncAsyncStub:
        """KVSync on a connection of its own, so that what is large does not hold up what is urgent."""
        return kvsync_pb2_grpc.KVSyncStub(self._bulky())

    @property
    def models(self) -> models_pb2_grpc.ModelsAsyncStub:
        """Models, on that connection too."""
        return models_pb2_grpc.ModelsStub(self._bulky())

    def _bulky(self) -> grpc.aio.Channel:
        if self._bulk is None:
            self._bulk = self._open(*wire.BULK_OPTIONS)
        return self._bulk

    def carry(self, requests: AsyncIterator[pool_pb2.CarryRequest]) -> AsyncGenerator[pool_pb2.CarryResponse, None]:
        """A loan of the peer's memory, for as long as it is iterated over."""
        return self.stream(pool_pb2_grpc.PoolStub(self._channel).Carry, requests, None)

    async def stream(
        self, method: Callable[..., grpc.aio.Call], request: object, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        """A streaming call of one of the stubs, such as `peer.kvsync.Pull`. Closing the iterator cancels it."""
        call: Any = None
        try:
            while True:
                async with self._translated(own_timeout=True):
                    call = call or method(request, timeout=timeout_s, metadata=tracing.metadata())
                    response = await call.read()
                if response is grpc.aio.EOF:
                    return
                yield response
        finally:
            if call is not None:
                call.cancel()

    def lost(self) -> bool:
        """Whether the connection, once made, was lost since the last time this was asked.

        Asked on each tick of the mesh: waiting for the state in gRPC instead would leave an operation behind that
        outlives its task, and its event loop in tests.
        """
        before, self._state = self._state, self._channel.get_state()
        return before is grpc.ChannelConnectivity.READY and self._state is not before

    async def close(self, grace: float | None = None) -> None:
        """Ends the connection; calls in flight fail as PeerUnavailable after `grace` seconds (default: at once)."""
        self._closed = True
        if self._bulk is not None:
            await self._bulk.close(grace)
        await self._channel.close(grace)

    @contextlib.asynccontextmanager
    async def _translated(self, *, own_timeout: bool) -> AsyncIterator[None]:
        """What gRPC raises becomes one of our errors; with `own_timeout` a deadline says that the peer is slow."""
        try:
            yield
            return
        except grpc.RpcError as e:
            error = self._error(e, own_timeout)
        except grpc.aio.UsageError:
            error = PeerUnavailable(f"{self._who()} is gone: its connection was closed")
        except asyncio.CancelledError:
            # gRPC raises this too when the channel is closed under a call; then it is not our task that was cancelled.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            error = PeerUnavailable(f"{self._who()} is gone: its connection was closed")
        if isinstance(error, PeerUnavailable) and self.id and not self._closed:
            self._on_broken(self.id)
        raise error

    def _error(self, e: grpc.RpcError, own_timeout: bool) -> ConclaveError:
        error = wire.error_from_rpc(e)
        text = error.message
        if isinstance(error, DeadlineExceeded) and own_timeout:
            return PeerUnavailable(f"{self._who()} did not answer in time")
        if not isinstance(error, PeerUnavailable):
            return error
        for sign, meaning in _SIGNS:
            if re.search(sign, text):
                return meaning(self)
        return PeerUnavailable(f"{self._who()} is not to be reached: {text.rsplit('last error: ', 1)[-1][:200]}")

    def _who(self) -> str:
        return f"node {self.id} at {self.address}" if self.id else self.address


# What gRPC says of a connection that failed, and what it means to a person. Its words are no interface: where they
# change, the plain text is shown instead.
_SIGNS: list[tuple[str, Callable[[Peer], ConclaveError]]] = [
    (
        "Hostname Verification",
        lambda p: PeerUnavailable(f"node {p.id} is gone from {p.address}: another node of this mesh answers there"),
    ),
    (
        "WRONG_VERSION_NUMBER|HTTP_REQUEST",
        lambda p: PeerUnavailable(
            f"{p.address} does not speak TLS: give the mesh address that the other node's banner shows"
        ),
    ),
    (
        "certificate has expired",
        lambda p: Unauthenticated(
            f"the certificate of {p.address} has expired: this machine's clock is ahead, or that one's is behind; "
            "set them right (certificates last a day)"
        ),
    ),
    (
        "certificate is not yet valid",
        lambda p: Unauthenticated(
            f"the certificate of {p.address} is not valid yet: this machine's clock is behind, or that one's is ahead; "
            "set them right"
        ),
    ),
    (
        "CERTIFICATE_VERIFY_FAILED|BAD_SIGNATURE",
        lambda p: Unauthenticated(
            f"{p.address} is of another mesh: to join it, run `python -m node pair` there, then here, "
            "or start this node with --token and what `python -m node token show` prints there"
        ),
    ),
    (
        "failed to connect.*(Socket|Endpoint) clos",
        lambda p: PeerUnavailable(
            f"{p.address} closed the connection: check that both nodes have the same token and right clocks"
        ),
    ),
    (
        "Stream removed|Connection reset|Broken pipe",
        lambda p: PeerUnavailable(f"{p._who()} is gone: the connection broke"),
    ),
    (
        "Connection refused",
        lambda p: PeerUnavailable(
            f"{p._who()} is gone: nobody listens there"
            if p.id
            else f"nobody listens at {p.address}: give the mesh address that the other node's banner shows, and see "
            "that it runs"
        ),
    ),
    (
        "timed out|handshaker shutdown|No route to host|[Uu]nreachable",
        lambda p: PeerUnavailable(
            f"{p._who()} does not answer: see that its machine is on and in this network, and that the firewall there "
            f"lets TCP port {p.address.rpartition(':')[2]} through"
        ),
    ),
    (
        "DNS|resolution|resolve|Domain name",
        lambda p: PeerUnavailable(f"{p.address} is no known host: check the name or use its IP address"),
    ),
]
