"""A client of a mesh: one connection over the addresses of several nodes, which moves when its node dies.

    async with Client("127.0.0.1:7420,127.0.0.1:7430") as client:
        answer = await client.generate(request("What is 12 + 30?", candidates=5))
        print(answer.text, answer.outcome.confidence)

What gRPC can do is left to it: its name resolution takes all addresses, `pick_first` stays with the node that holds the
conversation's KV, and the retry policy of the service config asks again where nothing of an answer had come. An answer
that had begun it cannot ask for again; that is done here. Every attempt has the same request id, so a node that knows
the answer gives that, and no turn counts twice.

The other nodes of the node's machine are learnt from its status, so one address is enough there. Listeners for clients
are on loopback only: to use nodes of other machines, give addresses that lead there (a tunnel's, for example).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from node import wire
from node.address import is_loopback, join_address, split_address
from node.errors import ConclaveError, DeadlineExceeded, InvalidRequest, PeerUnavailable
from node.v1 import (
    generate_pb2,
    generate_pb2_grpc,
    kvsync_pb2,
    kvsync_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    types_pb2,
)

DEFAULT_ADDRESS = "127.0.0.1:7420"
TIMEOUT_S = 300.0
STATUS_S = 10.0
LEARN_S = 10.0  # How old may be what is known of other nodes, when a call begins.
LEARN_TIMEOUT_S = 2.0
MAX_ADDRESSES = 16
MAX_MOVES = 8  # Of one call: a request that kills every node it comes to must end.
_CONNECT_MS = 2000  # How long a connection may take to be made: a node on a busy machine may take a second.
# Nodes answer with a name of ours where an error is theirs (`wire.ERROR_KEY`), so UNAVAILABLE without one is of the
# connection. gRPC's four attempts, 0.1 s to 0.4 s apart, bridge a restart's moment, not a restart.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"pick_first": {}}],
        "methodConfig": [
            {
                "name": [{"service": "node.v1.Generate"}, {"service": "node.v1.Mesh"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "0.4s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
_OPTIONS = list(
    (
        dict(wire.CHANNEL_OPTIONS)
        | {
            "grpc.min_reconnect_backoff_ms": _CONNECT_MS,
            "grpc.keepalive_time_ms": 2000,  # On loopback a ping costs nothing, and a person waits.
            "grpc.service_config": _SERVICE_CONFIG,
            # A request beyond this would be sent once only; the default is 256 KiB.
            "grpc.per_rpc_retry_buffer_size": wire.MAX_MESSAGE_BYTES,
        }
    ).items()
)
_T = TypeVar("_T")


class NodeGone(PeerUnavailable):
    """No node answers at any of the addresses, or the last one went away in the middle of a call."""


@dataclass(frozen=True, slots=True)
class Moved:
    """An answer that had begun was asked for again, and another node has taken it: what came of it so far is void."""

    reason: str


def request(
    said: str | Sequence[types_pb2.Message],
    *,
    topic: str = "",
    append: bool = False,
    begin: bool = False,
    parent: types_pb2.Version | None = None,
    candidates: int = 0,
    strategy: str = "",
    local: bool = False,
    params: types_pb2.SamplingParams | None = None,
    model: str = "",
    request_id: str = "",
) -> generate_pb2.GenerateRequest:
    """A request, with a fresh id unless one is given: a text is one message of the user. 0 and "" are the defaults.

    For what is not said here (tools, …) set the message's own fields; proto/node/v1/generate.proto has them.
    """
    messages = [types_pb2.Message(role="user", content=said)] if isinstance(said, str) else said
    return generate_pb2.GenerateRequest(
        topic=topic,
        messages=messages,
        append=append,
        begin=begin,
        parent=parent,
        candidates=candidates,
        strategy=strategy,
        scope=generate_pb2.SCOPE_LOCAL if local else generate_pb2.SCOPE_MESH,
        params=params,
        model=model,
        request_id=request_id or uuid.uuid4().hex,
    )


class Client:
    """Calls of one client. `addresses`: HOST:PORT of local listeners, a sequence or comma-separated, tried in order.

    Made and used on one event loop. Timeouts are seconds, over all attempts of a call. Calls raise ConclaveError: what
    the node says, NodeGone where none answers, DeadlineExceeded, InvalidRequest for a malformed address. Cancelling one
    stops its candidates on every node.
    """

    def __init__(self, addresses: str | Iterable[str] = DEFAULT_ADDRESS) -> None:
        given = addresses.split(",") if isinstance(addresses, str) else addresses
        self.addresses = list(dict.fromkeys(a.strip() for a in given if a.strip()))[:MAX_ADDRESSES]
        for address in self.addresses or [""]:
            if split_address(address) is None:
                raise InvalidRequest(f"{address!r} is not an address; write HOST:PORT, such as {DEFAULT_ADDRESS}")
        self._channel: grpc.aio.Channel | None = None
        self._dialled: list[str] = []
        self._learnt_at = -LEARN_S
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection; harmless when done twice."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # ---- calls ------------------------------------------------------------------------------------------------------

    async def generate(
        self, asked: generate_pb2.GenerateRequest, timeout_s: float = TIMEOUT_S
    ) -> generate_pb2.GenerateResponse:
        """One answer."""
        asked = _with_id(asked)
        return await self._unary(
            lambda c, left: generate_pb2_grpc.GenerateStub(c).Generate(asked, timeout=left), timeout_s
        )

    async def stream(
        self,
        asked: generate_pb2.GenerateRequest,
        timeout_s: float = TIMEOUT_S,
        wishes: generate_pb2.Wishes | None = None,
    ) -> AsyncGenerator[generate_pb2.StreamResponse | Moved, None]:
        """One answer as events, `done` last; `wishes` asks for more of them. After `Moved` it begins anew, with a plan.

        Close the iterator (`contextlib.aclosing`) to leave before the end.
        """
        wish = generate_pb2.StreamRequest(request=_with_id(asked), wishes=wishes)
        attempts = _Attempts(timeout_s)
        lost = ""  # why the attempt before broke off
        while True:
            channel = await self._connected()
            self._learn_soon()
            begun = False
            call = generate_pb2_grpc.GenerateStub(channel).Stream(wish, timeout=attempts.left())
            try:
                async for event in call:
                    begun = True
                    if lost:  # now that another node has taken it
                        yield Moved(lost)
                        lost = ""
                    yield event
                    if event.WhichOneof("event") == "done":
                        return
                error: ConclaveError = NodeGone(f"the node at {self._at()} ended its answer without a result")
            except grpc.aio.AioRpcError as e:
                error = self._error(e, timeout_s, begun=begun)
            finally:
                call.cancel()  # Harmless after the end; otherwise the node frees its sequences at once.
            if lost and isinstance(error, NodeGone):
                error = NodeGone(f"{lost}, and {error.message}")
            self._judge(error, attempts, begun=begun)
            lost = error.message if begun else lost

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float = TIMEOUT_S) -> list[list[float]]:
        """Vectors of texts, of length 1."""
        wish = generate_pb2.EmbedRequest(texts=texts, model=model)
        answer = await self._unary(
            lambda c, left: generate_pb2_grpc.GenerateStub(c).Embed(wish, timeout=left), timeout_s
        )
        return [list(e.values) for e in answer.embeddings]

    async def status(self, timeout_s: float = STATUS_S) -> mesh_pb2.StatusResponse:
        """What the node says of itself and its mesh; `nodes[0]` is the node asked."""
        try:
            answer = await self._unary(
                lambda c, left: mesh_pb2_grpc.MeshStub(c).Status(mesh_pb2.StatusRequest(), timeout=left), timeout_s
            )
        except DeadlineExceeded:
            raise PeerUnavailable(f"the node at {self._at()} does not answer within {timeout_s:g} s") from None
        self._learn(answer)
        return answer

    async def topics(self, timeout_s: float = STATUS_S) -> kvsync_pb2.ListResponse:
        """The conversations that the node holds. Raises ConclaveError."""
        wish = kvsync_pb2.ListRequest()
        return await self._unary(lambda c, left: kvsync_pb2_grpc.KVSyncStub(c).List(wish, timeout=left), timeout_s)

    async def show(self, topic: str, timeout_s: float = STATUS_S) -> kvsync_pb2.ShowResponse:
        """One conversation with its branches. Raises ConclaveError."""
        wish = kvsync_pb2.ShowRequest(topic=topic)
        return await self._unary(lambda c, left: kvsync_pb2_grpc.KVSyncStub(c).Show(wish, timeout=left), timeout_s)

    async def forget(self, topic: str, timeout_s: float = STATUS_S) -> kvsync_pb2.ForgetResponse:
        """Let a conversation go, on every node. Raises ConclaveError."""
        wish = kvsync_pb2.ForgetRequest(topic=topic)
        return await self._unary(lambda c, left: kvsync_pb2_grpc.KVSyncStub(c).Forget(wish, timeout=left), timeout_s)

    async def _unary(self, call: Callable[[grpc.aio.Channel, float], Awaitable[_T]], timeout_s: float) -> _T:
        attempts = _Attempts(timeout_s)
        while True:
            channel = await self._connected()
            if timeout_s > STATUS_S:
                self._learn_soon()
            try:
                return await call(channel, attempts.left())
            except grpc.aio.AioRpcError as e:
                self._judge(self._error(e, timeout_s, begun=False), attempts, begun=False)

    # ---- the connection ---------------------------------------------------------------------------------------------

    async def _connected(self) -> grpc.aio.Channel:
        """The channel over all addresses that are known now."""
        if self._channel is None or set(self._dialled) != set(self.addresses):
            old, self._channel = self._channel, grpc.aio.insecure_channel(await _target(self.addresses), _OPTIONS)
            self._dialled = list(self.addresses)
            if old is not None:
                self._spawn(old.close(TIMEOUT_S))  # Calls that still use it may end.
        return self._channel

    def _judge(self, error: ConclaveError, attempts: _Attempts, *, begun: bool) -> None:
        """Raise an error, unless another attempt makes sense: if nothing had come, gRPC tried all that it knew."""
        has_more = begun or set(self._dialled) != set(self.addresses)
        if not isinstance(error, NodeGone) or not has_more or not attempts.again():
            raise error from None

    def _error(self, e: grpc.aio.AioRpcError, timeout_s: float, *, begun: bool) -> ConclaveError:
        found = wire.error_from_rpc(e)
        if any(key == wire.ERROR_KEY for key, _ in e.trailing_metadata() or ()):
            return found  # The node's own words.
        match e.code():
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded(f"no answer within {timeout_s:g} s")
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                if begun:
                    which = f" at {self._at()}" if len(self._dialled) == 1 else ""
                    return NodeGone(f"the node{which} went away in the middle of the answer")
                return NodeGone(f"no node answers at {self._at()}: start one with `python -m node --join auto`")
            case grpc.StatusCode.UNIMPLEMENTED:
                return PeerUnavailable(f"what answers at {self._at()} is not a Conclave node of this version")
        return found

    def _at(self) -> str:
        return " or ".join(self._dialled or self.addresses)

    # ---- other nodes ------------------------------------------------------------------------------------------------

    def _learn_soon(self) -> None:
        """Ask in the background who else is there, so that it is known when this node dies."""
        now = time.monotonic()
        if now - self._learnt_at >= LEARN_S:
            self._learnt_at = now
            self._spawn(self._look_around())

    async def _look_around(self) -> None:
        with contextlib.suppress(ConclaveError):
            await self.status(LEARN_TIMEOUT_S)

    def _learn(self, answer: mesh_pb2.StatusResponse) -> None:
        """Add the other nodes of the machine that the node asked is on, if we are on it too.

        A local address means something on its own machine only. Nodes of one machine have one host in their mesh
        addresses; and we are on it if the node's own word for its address is one that we dialled.
        """
        self._learnt_at = time.monotonic()
        if not answer.nodes or answer.nodes[0].local_address not in self._dialled:
            return
        here = split_address(answer.nodes[0].address)
        near = [answer.nodes[0].local_address]
        for node in answer.nodes[1:]:
            there, local = split_address(node.address), split_address(node.local_address)
            if node.state != "dead" and here and there and local and there[0] == here[0] and is_loopback(local[0]):
                near.append(node.local_address)
        self.addresses = list(dict.fromkeys([*near, *self.addresses]))[:MAX_ADDRESSES]

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _Attempts:
    """The time and the moves that one call has left."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s
        self._moves = MAX_MOVES

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def again(self) -> bool:
        self._moves -= 1
        return self._moves >= 0 and time.monotonic() < self._end


def _with_id(asked: generate_pb2.GenerateRequest) -> generate_pb2.GenerateRequest:
    if asked.request_id:
        return asked
    kept = generate_pb2.GenerateRequest()
    kept.CopyFrom(asked)
    kept.request_id = uuid.uuid4().hex
    return kept


async def _target(addresses: Sequence[str]) -> str:
    """Several addresses as one target of gRPC's. It takes several IP addresses of one family, or one name.

    IPv4 ones among IPv6 ones become IPv4-mapped. A name that cannot be resolved is left out while others can.
    """
    if len(addresses) == 1:
        return f"dns:///{addresses[0]}"
    ips: dict[str, int] = {}
    for address in addresses:
        host, port = split_address(address) or ("", 0)
        with contextlib.suppress(OSError):
            for *_, where in await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM):
                ip = str(where[0])
                ips.setdefault(join_address(ip, port), ipaddress.ip_address(ip.split("%")[0]).version)
    if not ips:
        raise NodeGone(f"none of {', '.join(addresses)} is a known host: check the names, or use IP addresses")
    if set(ips.values()) == {4}:
        return f"ipv4:{','.join(ips)}"
    return "ipv6:" + ",".join(a if v == 6 else "[::ffff:{}]:{}".format(*a.rsplit(":", 1)) for a, v in ips.items())
