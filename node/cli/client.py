"""How a client command reaches a node: which addresses, one call, and what its failure means to a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import grpc

from node import home, wire
from node.config import DEFAULT_PORT
from node.errors import ConclaveError, DeadlineExceeded, PeerUnavailable
from node.mesh.local import running_nodes
from node.v1 import generate_pb2, generate_pb2_grpc, mesh_pb2, mesh_pb2_grpc

T = TypeVar("T")
STATUS_S = 10.0
CONNECT_MS = 2000  # How long a connection may take to be made: a node on a busy machine may take a second.
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
# What gRPC itself says when a connection could not be made or broke; a node's own UNAVAILABLE reads otherwise.
_CONNECTION = re.compile(
    r"failed to connect|connection (refused|reset|aborted|closed)|connect failed|socket closed|broken pipe"
    r"|recvmsg|sendmsg|stream removed|goaway|rst_stream|ping timeout|keepalive|name resolution|dns|no route"
    r"|unreachable|handshake|transport|endpoint|timeout occurred|empty update|eof",
    re.IGNORECASE,
)


class NodeGone(PeerUnavailable):
    """No node answers at an address, or it went away in the middle of a call."""


def local_addresses() -> list[str]:
    """Addresses of the nodes that run on this machine, as they say themselves."""
    return [n.local_address for n in running_nodes(home.home().runtime) if n.local_address]


def addresses(given: Sequence[str] | None) -> list[str]:
    """Where to ask: what the user gave, else the nodes of this machine, else the default port."""
    return list(given) if given else local_addresses() or [DEFAULT_ADDRESS]


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """A connection to a node's local listener; made when it is first used."""
    options = dict(wire.CHANNEL_OPTIONS) | {"grpc.min_reconnect_backoff_ms": CONNECT_MS}
    opened = grpc.insecure_channel(address, options=list(options.items()))
    try:
        yield opened
    finally:
        opened.close()


def status(address: str, timeout: float = STATUS_S) -> mesh_pb2.StatusResponse:
    """What the node says of itself and its mesh. Raises ConclaveError."""
    with channel(address) as opened:
        try:
            return mesh_pb2_grpc.MeshStub(opened).Status(mesh_pb2.StatusRequest(), timeout=timeout)
        except grpc.RpcError as e:
            found = failure(e, address, timeout)
            if isinstance(found, DeadlineExceeded):
                raise PeerUnavailable(f"the node at {address} does not answer within {timeout:g} s") from None
            raise found from None


def first(tried: Sequence[str], call: Callable[[str], T]) -> T:
    """The first answer among several addresses; only a node that is gone leads to the next. Raises ConclaveError."""
    gone: NodeGone | None = None
    for address in tried:
        try:
            return call(address)
        except NodeGone as e:
            gone = gone or e
    raise gone or nobody(DEFAULT_ADDRESS)


def stream(
    address: str,
    request: generate_pb2.GenerateRequest,
    timeout: float,
    on_event: Callable[[generate_pb2.StreamResponse], None],
) -> generate_pb2.GenerateResponse:
    """Ask, hand every event on, and return the result. Raises ConclaveError. An interrupt cancels the call."""
    with channel(address) as opened:
        call = generate_pb2_grpc.GenerateStub(opened).Stream(
            generate_pb2.StreamRequest(request=request), timeout=timeout
        )
        begun = False
        try:
            for event in call:
                begun = True
                on_event(event)
                if event.WhichOneof("event") == "done":
                    return event.done
        except grpc.RpcError as e:
            raise failure(e, address, timeout, begun=begun) from None
        finally:
            call.cancel()  # harmless after the end; otherwise the node frees its sequences at once
    raise NodeGone(f"the node at {address} ended its answer without a result")


def failure(error: grpc.RpcError, address: str, timeout: float, *, begun: bool = False) -> ConclaveError:
    """What a failed call means; `begun` when something had come already."""
    found = wire.error_from_rpc(error)
    if isinstance(found, DeadlineExceeded) and "deadline exceeded" in found.message.lower():
        return DeadlineExceeded(f"no answer within {timeout:g} s: allow more with --timeout")
    if isinstance(found, PeerUnavailable) and _CONNECTION.search(found.message):
        return NodeGone(f"the node at {address} went away in the middle of the answer") if begun else nobody(address)
    if found.code == "UNIMPLEMENTED" and "method" in found.message.lower():
        return PeerUnavailable(f"what answers at {address} is not a Conclave node of this version")
    return found


def nobody(address: str) -> NodeGone:
    """The error for an address where nobody answers."""
    return NodeGone(f"no node answers at {address}: start one with `python -m node --join auto`")
