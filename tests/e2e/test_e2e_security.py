"""No one gets in: what strangers find at each listener."""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Callable

import grpc
import psutil
import pytest
from swarm import SOON_S, Client, Node, Swarm

from node.mesh.identity import ANY_NODE, Identity, new_token
from node.v1 import mesh_pb2, mesh_pb2_grpc, vote_pb2, vote_pb2_grpc

Pair = tuple[Swarm, list[Node]]
HELLO = mesh_pb2.HelloRequest(protocol=1)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as e:
        call()
    return e.value.code(), e.value.details()  # type: ignore[attr-defined]


def host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_plaintext_at_the_mesh_port(fakes: Pair) -> None:
    _, (one, _) = fakes
    stranger = Client(one.mesh_address)
    try:
        assert refused(stranger.status)[0] is grpc.StatusCode.UNAVAILABLE
        assert refused(lambda: stranger.ask("hello"))[0] is grpc.StatusCode.UNAVAILABLE
    finally:
        stranger.channel.close()


def test_tls_without_a_certificate(fakes: Pair) -> None:
    """The node ends the connection: nothing that is sent over it is answered."""
    _, (one, _) = fakes
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    answered = b""
    with socket.create_connection(host_port(one.mesh_address), timeout=SOON_S) as raw:
        try:
            with context.wrap_socket(raw) as tls:
                tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                answered = tls.recv(1024)
        except (ssl.SSLError, ConnectionError):
            pass
    assert answered == b""


def test_tls_below_1_3(fakes: Pair) -> None:
    _, (one, _) = fakes
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(host_port(one.mesh_address), timeout=SOON_S) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw)


@pytest.mark.parametrize("is_of_this_mesh", [True, False])
def test_a_certificate_opens_the_mesh_port_if_it_is_of_this_mesh(fakes: Pair, is_of_this_mesh: bool) -> None:
    """The counter-proof of the tests above: with the token the same calls come through."""
    made, (one, _) = fakes
    ours = made.run("token", "show").out.strip()
    identity = Identity(ours if is_of_this_mesh else new_token(), "a234567bcd")
    options = [("grpc.ssl_target_name_override", ANY_NODE)]
    with grpc.secure_channel(one.mesh_address, identity.channel_credentials(), options=options) as channel:
        stub = mesh_pb2_grpc.MeshStub(channel)
        if is_of_this_mesh:
            assert stub.Status(mesh_pb2.StatusRequest(), timeout=SOON_S).nodes[0].id == one.id
            # And who says to be another than the certificate says is not believed.
            liar = mesh_pb2.HelloRequest(protocol=1, node={"id": "b234567bcd", "address": "127.0.0.1:1"})
            assert refused(lambda: stub.Hello(liar, timeout=SOON_S))[0] is grpc.StatusCode.UNAUTHENTICATED
        else:
            code, _ = refused(lambda: stub.Status(mesh_pb2.StatusRequest(), timeout=SOON_S))
            assert code is grpc.StatusCode.UNAVAILABLE


def test_the_calls_of_nodes_are_refused_on_the_local_listener(fakes: Pair) -> None:
    _, (one, _) = fakes
    mesh = one.client.mesh
    code, details = refused(lambda: mesh.Hello(HELLO, timeout=SOON_S))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "certificate" in details
    assert refused(lambda: mesh.Probe(mesh_pb2.ProbeRequest(), timeout=SOON_S))[0] is grpc.StatusCode.UNAUTHENTICATED
    vote = vote_pb2_grpc.VoteStub(one.client.channel)
    assert refused(lambda: vote.Decide(vote_pb2.DecideRequest(), timeout=SOON_S))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert refused(lambda: list(vote.Poll(vote_pb2.PollRequest(), timeout=SOON_S)))[0] is grpc.StatusCode.UNIMPLEMENTED


def listens(node: Node) -> set[tuple[str, int]]:
    """Where a node's process listens; an IPv4 address as itself, also on a socket for both kinds."""
    return {
        (c.laddr.ip.removeprefix("::ffff:"), c.laddr.port)
        for c in psutil.Process(node.process.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }


def test_everything_listens_on_loopback_only(fakes: Pair) -> None:
    """As it was told by CONCLAVE_INTERFACE; the local listener knows nothing else."""
    _, nodes = fakes
    for node in nodes:
        found = listens(node)
        assert found == {host_port(each) for each in (node.address, node.mesh_address, node.http_address)}
        assert {ip for ip, _ in found} == {"127.0.0.1"}


def test_the_listeners_for_clients_stay_on_loopback(own: Swarm) -> None:
    """Also where the mesh listener is on every interface."""
    node = own.start("--backend", "fake", "--join", "none", CONCLAVE_INTERFACE="")
    own.ready(node)
    for_clients = {host_port(node.address), host_port(node.http_address)}
    ((mesh_ip, mesh_port),) = listens(node) - for_clients
    assert {ip for ip, _ in for_clients} == {"127.0.0.1"}
    assert mesh_ip in ("::", "0.0.0.0")
    assert mesh_port == host_port(node.mesh_address)[1]


def test_secrets_are_for_their_owner_only(fakes: Pair) -> None:
    made, _ = fakes
    token = made.home / "config" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    for path in (made.home / "config", made.home / "data" / "node-0", made.home / "run" / "nodes"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    for file in (made.home / "run" / "nodes").glob("*.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_prompt_cannot_write_to_the_terminal(fakes: Pair) -> None:
    """The fake model says what it was told, control characters and all; the command does not."""
    made, (one, _) = fakes
    prompt = "\x1b]0;owned\x07\x1b[2Jhello"
    assert one.client.ask(prompt).text == f"echo: {prompt}"
    done = made.run("ask", stdin=prompt.encode())
    assert done.code == 0
    assert "hello" in done.out
