"""The token, the certificates that come of it, and who gets through a listener."""

import multiprocessing
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from meshnode import HOST

from node.errors import ConclaveError, InvalidRequest, PeerUnavailable, Unauthenticated
from node.mesh import identity, unshared
from node.mesh.identity import (
    Identity,
    keep_token,
    load_node_id,
    load_token,
    new_token,
    parse_token,
    peer_id,
    store_token,
)
from node.mesh.peer import Peer
from node.v1 import mesh_pb2

A, B = "a" * 10, "b" * 10
DAY = 24 * 3600


class TestToken:
    def test_round_trip(self) -> None:
        token = new_token()
        assert token.startswith("clv1-")
        assert len(token) == 5 + 43
        assert len(parse_token(f"  {token}\n")) == 32

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda t: "", "does not start with"),
            (lambda t: t[5:], "does not start with"),
            (lambda t: t[:-4], "bytes instead of 32"),
            (lambda t: t + "AAAA", "bytes instead of 32"),
            (lambda t: t[:-1] + "!", "characters"),
            (lambda t: t[:10] + "\u00e9" + t[11:], "characters"),
            (lambda t: t[:10] + "+" + t[11:], None),
        ],
    )
    def test_a_bad_one_is_refused_in_one_line_without_showing_it(self, spoil: Any, why: str | None) -> None:
        bad = spoil("clv1-" + "Secret00" * 5 + "AAA")
        if why is None:
            with pytest.raises(InvalidRequest):
                parse_token(bad)
            return
        with pytest.raises(InvalidRequest, match=why) as error:
            parse_token(bad, "CONCLAVE_TOKEN")
        assert "CONCLAVE_TOKEN" in error.value.message
        assert "token show" in error.value.message
        assert "\n" not in error.value.message
        assert "Secret" not in error.value.message

    def test_made_once_and_private(self, tmp_path: Path) -> None:
        token = load_token(tmp_path / "config")
        assert load_token(tmp_path / "config") == token
        file = tmp_path / "config" / "token"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert {p.name for p in file.parent.iterdir()} == {"token", "token.unshared"}

    def test_a_readable_one_is_closed_again(self, tmp_path: Path) -> None:
        token = load_token(tmp_path)
        (tmp_path / "token").chmod(0o644)
        assert load_token(tmp_path) == token
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600

    def test_override_wins_and_is_not_kept(self, tmp_path: Path) -> None:
        other = new_token()
        assert load_token(tmp_path / "none", other) == other
        assert not (tmp_path / "none").exists()
        with pytest.raises(InvalidRequest, match="--token"):
            load_token(tmp_path, "nonsense")

    def test_one_that_nobody_shares_makes_way(self, tmp_path: Path) -> None:
        first, second, third = new_token(), new_token(), new_token()
        assert "is kept: later" in keep_token(tmp_path, first)
        assert keep_token(tmp_path, first) == ""
        assert "no other machine had" in keep_token(tmp_path, second)
        assert load_token(tmp_path) == second
        unshared.met(tmp_path, first)  # a node that was started with another one
        assert unshared.is_unshared(tmp_path)
        unshared.met(tmp_path, second)
        assert not unshared.is_unshared(tmp_path)
        said = keep_token(tmp_path, third)
        assert "for this run only" in said
        assert "node pair" in said
        assert load_token(tmp_path) == second
        assert {p.name for p in tmp_path.iterdir()} == {"token"}

    def test_one_that_came_from_elsewhere_counts_as_shared(self, tmp_path: Path) -> None:
        load_token(tmp_path)
        (tmp_path / "token").write_text(new_token() + "\n")  # by hand: the mark is not of this one
        assert not unshared.is_unshared(tmp_path)
        store_token(tmp_path, new_token())
        assert not unshared.is_unshared(tmp_path)

    def test_a_config_that_cannot_be_written_stops_nobody(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot be kept" in keep_token(tmp_path / "file" / "config", new_token())
        with pytest.raises(InvalidRequest, match="--token"):
            keep_token(tmp_path, "nonsense")

    def test_store_replaces(self, tmp_path: Path) -> None:
        load_token(tmp_path)
        token = new_token()
        store_token(tmp_path, token)
        assert load_token(tmp_path) == token

    def test_a_broken_file_says_which(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("oops")
        with pytest.raises(InvalidRequest, match=str(tmp_path / "token")):
            load_token(tmp_path)

    def test_two_processes_at_once_end_with_one(self, tmp_path: Path) -> None:
        with multiprocessing.get_context("forkserver").Pool(4) as pool:
            assert len(set(pool.map(load_token, [tmp_path / "config"] * 16, chunksize=1))) == 1


class TestNodeId:
    def test_lasts(self, tmp_path: Path) -> None:
        node_id = load_node_id(tmp_path)
        assert identity.NODE_ID.fullmatch(node_id)
        assert load_node_id(tmp_path) == node_id

    def test_nonsense_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "node_id").write_text("../../x")
        with pytest.raises(InvalidRequest, match="does not hold a node id"):
            load_node_id(tmp_path)


class TestCertificates:
    def test_the_authority_is_the_same_on_every_node(self, token: str) -> None:
        a, b = Identity(token, A), Identity(token, B)
        assert a.mesh_id == b.mesh_id
        assert len(a.mesh_id) == 16
        ca_a, ca_b = (x509.load_pem_x509_certificate(i.ca_certificate) for i in (a, b))
        assert ca_a.tbs_certificate_bytes == ca_b.tbs_certificate_bytes
        assert Identity(new_token(), A).mesh_id != a.mesh_id

    def test_the_derivation_is_fixed(self) -> None:
        # Nodes of different releases must come to the same authority for ever: this value never changes.
        assert Identity("clv1-" + "A" * 43, A).mesh_id == "854bfdabe5d7d4ad"

    def test_a_leaf_names_its_node_and_is_signed_by_the_other_nodes_copy(self, token: str) -> None:
        leaf = x509.load_pem_x509_certificate(Identity(token, A).leaf().certificate)
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(Identity(token, B).ca_certificate))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{A}.node.conclave", "mesh.conclave"]
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"conclave://node/{A}"]
        assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == DAY + 3600

    def test_renewed_when_under_8_hours_remain(self, token: str) -> None:
        now = time.time()
        me = Identity(token, A, clock=lambda: now)
        first = me.leaf()
        now += 15.9 * 3600
        assert me.leaf() is first
        now += 0.2 * 3600
        assert me.leaf().expires == pytest.approx(now + DAY)

    def test_renewed_when_the_clock_was_set_back(self, token: str) -> None:
        right = time.time()
        now = right + 400 * DAY  # a clock that is wrong at the start
        me = Identity(token, A, clock=lambda: now)
        me.leaf()
        now = right  # and is set right later
        renewed = me.leaf()
        assert x509.load_pem_x509_certificate(renewed.certificate).not_valid_before_utc.timestamp() < right
        now -= 60
        assert me.leaf() is renewed, "a little is no reason"

    def test_bad_node_id(self, token: str) -> None:
        with pytest.raises(InvalidRequest, match="node id"):
            Identity(token, "UPPER CASE")


def forged(signer: Identity, ca: Identity, **options: Any) -> grpc.ChannelCredentials:
    leaf = signer.issue(**options)
    return grpc.ssl_channel_credentials(ca.ca_certificate, leaf.key, leaf.certificate)


@pytest.mark.asyncio(loop_scope="session")
class TestListener:
    """Each caller that must not get in, against a real listener."""

    async def refused(self, address: str, credentials: grpc.ChannelCredentials | None) -> str:
        options = [("grpc.ssl_target_name_override", "mesh.conclave")]
        channel = (
            grpc.aio.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(address)
        )
        async with channel:
            call = channel.unary_unary("/node.v1.Mesh/Hello", response_deserializer=mesh_pb2.HelloResponse.FromString)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"", timeout=60)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            return error.value.details() or ""

    async def test_strangers_are_refused(self, start: Any, token: str) -> None:
        node = await start("a", join=None)
        ours, theirs = Identity(token, B), Identity(new_token(), B)
        # One who copied our authority's name and certificate, but has not its key.
        self_made = Identity(new_token(), B)
        self_made._authority.name = ours._authority.name
        for credentials in (
            None,
            grpc.ssl_channel_credentials(ours.ca_certificate),
            forged(theirs, ours),
            forged(self_made, ours),
            forged(ours, ours, lifetime_s=-60),
        ):
            await self.refused(node.address, credentials)
        assert node.servicer.callers == []

    async def test_a_member_is_let_in_by_its_name(self, start: Any, token: str) -> None:
        node = await start("a", join=None)
        node.servicer.mesh = None
        for name in (A, ""):
            peer = Peer(Identity(token, B), node.address, name)
            assert (await peer.hello(mesh_pb2.HelloRequest())).protocol == 1
            await peer.close()
        assert node.servicer.callers == [B, B]

    async def test_a_listener_renews_its_leaf_under_way(self, start: Any, token: str) -> None:
        now = time.time() - 3 * DAY  # Its first leaf expired two days ago.
        node = await start("a", join=None, identity=Identity(token, A, clock=lambda: now))
        node.servicer.mesh = None
        peer = Peer(Identity(token, B), node.address, A)
        with pytest.raises(Unauthenticated, match="clock"):
            await peer.hello(mesh_pb2.HelloRequest())
        await peer.close()
        now = time.time()
        peer = Peer(Identity(token, B), node.address, A)
        await peer.hello(mesh_pb2.HelloRequest())
        await peer.close()


@pytest.mark.asyncio(loop_scope="session")
class TestOverlap:
    """A token was replaced: who has the old one, the new one, or both, can call whom?"""

    async def calls(self, caller: Identity, called: Identity) -> bool:
        server = grpc.aio.server()
        port = server.add_secure_port(f"{HOST}:0", called.server_credentials())
        await server.start()
        peer = Peer(caller, f"{HOST}:{port}", called.node_id)
        with pytest.raises(ConclaveError) as error:
            await peer.hello(mesh_pb2.HelloRequest())
        await peer.close()
        await server.stop(None)
        assert error.value.code in ("UNIMPLEMENTED", "UNAVAILABLE", "UNAUTHENTICATED"), error.value
        return error.value.code == "UNIMPLEMENTED"  # through the handshake, to a server that serves nothing

    async def test_both_ways_until_it_is_over(self) -> None:
        first, second, now = new_token(), new_token(), time.time()
        clock = [now]
        old = Identity(first, A)
        both = Identity(second, B, old=identity.OldToken(first, now + 3600), clock=lambda: clock[0])
        new = Identity(second, "c" * 10)
        stranger = Identity(new_token(), "d" * 10)
        for caller, called, passes in (
            (old, both, True), (both, old, True), (both, new, True), (new, both, True), (both, both, True),
            (old, new, False), (new, old, False), (stranger, both, False), (both, stranger, False),
        ):  # fmt: skip
            assert await self.calls(caller, called) is passes, (caller.node_id, called.node_id)
        assert both.mesh_ids() == {old.mesh_id, new.mesh_id}
        clock[0] = now + 3601
        assert both.mesh_ids() == {new.mesh_id}
        for caller, called, passes in ((old, both, False), (both, new, True), (new, both, True)):
            assert await self.calls(caller, called) is passes, (caller.node_id, called.node_id)

    async def test_a_listener_ends_the_overlap_under_way(self) -> None:
        first, now = new_token(), time.time()
        clock = [now]
        both = Identity(new_token(), B, old=identity.OldToken(first, now + 60), clock=lambda: clock[0])
        server = grpc.aio.server()
        port = server.add_secure_port(f"{HOST}:0", both.server_credentials())
        await server.start()
        codes = []
        for moment in (now, now + 61):
            clock[0] = moment
            peer = Peer(Identity(first, A), f"{HOST}:{port}", B)
            with pytest.raises(ConclaveError) as error:
                await peer.hello(mesh_pb2.HelloRequest())
            codes.append(error.value.code)
            await peer.close()
        await server.stop(None)
        assert codes[0] == "UNIMPLEMENTED"
        assert codes[1] in ("UNAVAILABLE", "UNAUTHENTICATED")

    async def test_it_is_kept_until_then(self, tmp_path: Path) -> None:
        assert identity.load_old_token(tmp_path, 0.0) is None
        old = identity.OldToken(new_token(), 1000.0)
        identity.store_old_token(tmp_path, old)
        assert (tmp_path / "token.old").stat().st_mode & 0o777 == 0o600
        assert identity.load_old_token(tmp_path, 999.0) == old
        assert identity.load_old_token(tmp_path, 1000.0) is None
        (tmp_path / "token.old").write_text(old.token)
        with pytest.raises(InvalidRequest, match=r"token\.old does not say until when"):
            identity.load_old_token(tmp_path, 0.0)


@pytest.mark.asyncio(loop_scope="session")
class TestErrors:
    """What a caller is told, in one line."""

    async def error(self, token: str, address: str, name: str = "") -> ConclaveError:
        peer = Peer(Identity(token, B), address, name)
        with pytest.raises(ConclaveError) as error:
            await peer.hello(mesh_pb2.HelloRequest())
        await peer.close()
        assert "\n" not in error.value.message
        return error.value

    async def test_another_mesh(self, start: Any) -> None:
        node = await start("a", join=None)
        error = await self.error(new_token(), node.address)
        assert isinstance(error, Unauthenticated)
        assert "another mesh" in error.message
        assert "--token" in error.message

    @pytest.mark.parametrize(
        ("days", "why"), [(-3, "has expired: this machine's clock is ahead"), (3, "not valid yet")]
    )
    async def test_a_clock_that_is_wrong(self, token: str, days: int, why: str) -> None:
        wrong = Identity(token, A, clock=lambda: time.time() + days * 86400)
        server = grpc.aio.server()
        port = server.add_secure_port(f"{HOST}:0", wrong.server_credentials())
        await server.start()
        error = await self.error(token, f"{HOST}:{port}")
        await server.stop(None)
        assert isinstance(error, Unauthenticated)
        assert why in error.message

    async def test_another_node(self, start: Any, token: str) -> None:
        node = await start("a", join=None)
        error = await self.error(token, node.address, "c" * 10)
        assert isinstance(error, PeerUnavailable)
        assert "node cccccccccc is gone" in error.message

    async def test_nobody(self, token: str, nobody: str) -> None:
        error = await self.error(token, nobody, A)
        assert isinstance(error, PeerUnavailable)
        assert "nobody listens there" in error.message

    async def test_a_plaintext_listener(self, token: str) -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        error = await self.error(token, f"{HOST}:{port}")
        await server.stop(None)
        assert isinstance(error, PeerUnavailable)
        assert "does not speak TLS" in error.message

    async def test_silence(self, token: str) -> None:
        with socket.create_server((HOST, 0)) as mute:  # The system accepts, nobody reads.
            peer = Peer(Identity(token, B), f"{HOST}:{mute.getsockname()[1]}", A)
            with pytest.raises(PeerUnavailable, match="did not answer in time"):
                await peer.hello(mesh_pb2.HelloRequest(), 0.2)
            await peer.close()

    async def test_an_unknown_host(self, token: str) -> None:
        error = await self.error(token, "no-such-host.invalid:1")
        assert isinstance(error, PeerUnavailable)
        assert "no-such-host.invalid:1" in error.message


class TestTls:
    def test_only_tls13_passes(self) -> None:
        auth = {"ssl_tls_version": [b"TLSv1.3"], "peer_uri": [f"conclave://node/{A}".encode()]}
        assert peer_id(auth) == A
        for change in (
            {"ssl_tls_version": [b"TLSv1.2"]},
            {"ssl_tls_version": []},
            {"peer_uri": []},
            {"peer_uri": [b"spiffe://x"]},
            {"peer_uri": [f"conclave://node/{A}".encode(), f"conclave://node/{B}".encode()]},
            {"peer_uri": [b"conclave://node/../../x"]},
        ):
            with pytest.raises(Unauthenticated):
                peer_id({**auth, **change})
        with pytest.raises(Unauthenticated):
            peer_id({})

    def test_negotiated_and_refused(self, tmp_path: Path) -> None:
        # In a process of its own: what refuses TLS 1.2 works only before grpc is imported. openssl has a good leaf.
        script = tmp_path / "serve.py"
        script.write_text(SERVE)
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60, errors="replace"
        )
        assert done.returncode == 0, done.stderr
        tls13, tls12 = done.stdout.split("=====")
        assert "TLSv1.3" in tls13
        assert "Verification: OK" in tls13
        assert "Protocol version" not in tls12


SERVE = """
import asyncio, os, sys
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
import grpc
from node.mesh.identity import Identity, new_token

async def main():
    token, folder = new_token(), sys.argv[1]
    a, b = Identity(token, "a" * 10), Identity(token, "b" * 10)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", a.server_credentials())
    await server.start()
    leaf = b.leaf()
    for name, data in (("ca", b.ca_certificate), ("key", leaf.key), ("crt", leaf.certificate)):
        with open(f"{folder}/{name}", "wb") as f:
            f.write(data)
    for version in ("-tls1_3", "-tls1_2"):
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", version, "-brief", "-alpn", "h2", "-connect", f"127.0.0.1:{port}",
            "-CAfile", f"{folder}/ca", "-cert", f"{folder}/crt", "-key", f"{folder}/key",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        out, _ = await asyncio.wait_for(client.communicate(), 60)
        print(out.decode(errors="replace"), flush=True)
        print("=====" if version == "-tls1_3" else "", flush=True)
    await server.stop(None)

asyncio.run(main())
"""
