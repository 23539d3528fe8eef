"""What a node listens on. Ports are taken before the model is loaded, so that a taken one is said at once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc
import psutil

from node import wire
from node.address import join_address
from node.api import http
from node.config import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT, DEFAULT_PORT, Config
from node.errors import InvalidRequest, NotReady
from node.home import home
from node.mesh.identity import Identity
from node.mesh.interfaces import announced
from node.mesh.local import RunningNode, running_nodes

_TRIES = 64
_STEP = 10  # a second node on the machine takes 7430 and 7431, and so on


@dataclass(frozen=True, slots=True)
class Ports:
    """A node's listeners, bound but not serving, and where they are (HOST:PORT); `http` is None with --http-port 0."""

    local: grpc.aio.Server
    mesh: grpc.aio.Server
    http: socket.socket | None
    local_address: str
    mesh_address: str
    http_address: str


def take(config: Config, identity: Identity) -> Ports:
    """Bind what the configuration asks for. Raises NotReady where a port is not to be had, InvalidRequest."""
    local = grpc.aio.server(options=wire.SERVER_OPTIONS)
    mesh = grpc.aio.server(options=wire.SERVER_OPTIONS)
    port = _listen("--port", config.port, DEFAULT_PORT, lambda p: local.add_insecure_port(f"127.0.0.1:{p}"))
    _check_interfaces(config.interfaces)
    hosts = [f"[{i}]" if ":" in i else i for i in config.interfaces] or ["[::]"]

    def add(p: int) -> int:
        # Credentials serve one attempt: gRPC takes their first certificate away even where the port is taken.
        return min(mesh.add_secure_port(f"{host}:{p}", identity.server_credentials()) for host in hosts)

    mesh_port = _listen("--mesh-port", config.mesh_port, DEFAULT_MESH_PORT, add)
    listener, http_address = _http(config)
    mesh_address = join_address(announced(config.interfaces)[0], mesh_port)
    return Ports(local, mesh, listener, f"127.0.0.1:{port}", mesh_address, http_address)


def _http(config: Config) -> tuple[socket.socket | None, str]:
    """The listener of the HTTP gateway and its address, if there is to be one."""
    if config.http_port == 0:
        return None, ""
    if config.http_key and not config.http_cert:
        raise InvalidRequest("--http-key is the key of a certificate: give that with --http-cert")
    host, bound = config.http_host, []

    def add(port: int) -> int:
        bound.append(http.bind(host, port))
        return port

    port = _listen("--http-port", config.http_port, DEFAULT_HTTP_PORT, add)
    return bound[0], f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_interfaces(asked: Sequence[str]) -> None:
    families = (socket.AF_INET, socket.AF_INET6)
    adapters = psutil.net_if_addrs().values()
    own = {a.address.split("%")[0] for addresses in adapters for a in addresses if a.family in families}
    for interface in asked:
        if interface not in own:
            raise InvalidRequest(
                f"--interface {interface} is no address of this machine: it has {', '.join(sorted(own))}"
            )


def _listen(flag: str, asked: int | None, default: int, add: Callable[[int], int]) -> int:
    """Bind a port: the one that was asked for, or the default or the next free one. Raises NotReady."""
    if asked is not None:
        try:
            return add(asked)
        except (RuntimeError, OSError):
            raise NotReady(f"{flag} {asked} {_refusal(asked)}: choose another, or leave {flag} out") from None
    for attempt in range(_TRIES):
        with contextlib.suppress(RuntimeError, OSError):
            return add(default + attempt * _STEP)
    raise NotReady(f"no free port from {default} on in steps of {_STEP}: choose one with {flag}")


def _whose(port: int, running: Iterable[RunningNode]) -> str:
    """Who has a port: a node of this machine, or somebody else."""
    for node in running:
        for address, use in (
            (node.local_address, "clients"),
            (node.mesh_address, "other nodes"),
            (node.http_address, "HTTP"),
        ):
            if address.rpartition(":")[2] == str(port):
                called = f"{node.name} ({node.id})" if node.name else node.id
                which = f"node {called} of this machine, which runs as process {node.pid}"
                return f"is taken by {which} (its port for {use})"
    return "is taken by another program"


def _refusal(port: int) -> str:
    """Why a port was not given; gRPC does not say."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except PermissionError:
        return "may not be used by this user"
    except OSError:
        return _whose(port, running_nodes(home().runtime))
    return "cannot be used"
