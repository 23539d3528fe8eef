"""What strangers get at the mesh port with OpenSSL's own client: a handshake that is refused, and not one byte more."""

from __future__ import annotations

import selectors
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from swarm import Node, Swarm

from node.mesh.identity import Identity, Leaf, new_token

Pair = tuple[Swarm, list[Node]]
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = b"\4"  # the type of the frame that a server of HTTP/2 sends first
STRANGER = "a234567bcd"


def s_client(address: str, *flags: str, said: bytes = PREFACE) -> tuple[bytes, str]:
    """What the server answers to what is said, and what openssl says of the connection."""
    pipe = subprocess.PIPE
    argv = ["openssl", "s_client", "-connect", address, "-quiet", "-alpn", "h2", *flags]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(said)
        client.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(client.stdout, selectors.EVENT_READ)
            answer = client.stdout.read1(64) if ready.select(60) else b"(silence)"  # b"" is the end
        client.kill()
        assert client.stderr is not None
        return answer, client.stderr.read().decode(errors="replace")


def files(leaf: Leaf, where: Path) -> list[str]:
    (where / "cert.pem").write_bytes(leaf.certificate)
    (where / "key.pem").write_bytes(leaf.key)
    return ["-cert", str(where / "cert.pem"), "-key", str(where / "key.pem")]


def self_made(where: Path) -> list[str]:
    """A certificate with all the names of a node's, signed by itself."""
    key, cert = where / "key.pem", where / "cert.pem"
    names = f"subjectAltName=DNS:{STRANGER}.node.conclave,DNS:mesh.conclave,URI:conclave://node/{STRANGER}"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1".split()
    subprocess.run(
        [*make, "-subj", f"/CN={STRANGER}", "-addext", names, "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return ["-cert", str(cert), "-key", str(key)]


def test_a_member_is_answered(fakes: Pair, tmp_path: Path) -> None:
    """The counter-proof: with a certificate of the mesh the same command gets an answer."""
    made, (one, _) = fakes
    token = made.run("token", "show").out.strip()
    answer, said = s_client(one.mesh_address, *files(Identity(token, STRANGER).leaf(), tmp_path))
    assert answer[3:4] == SETTINGS, said


@pytest.mark.parametrize("who", ["no certificate", "self-made", "another mesh", "expired", "not yet valid"])
def test_strangers_are_refused(fakes: Pair, tmp_path: Path, who: str) -> None:
    made, (one, _) = fakes
    token = made.run("token", "show").out.strip()
    flags: list[str] = []
    if who == "self-made":
        flags = self_made(tmp_path)
    elif who == "another mesh":
        flags = files(Identity(new_token(), STRANGER).leaf(), tmp_path)
    elif who == "expired":
        flags = files(Identity(token, STRANGER).issue(lifetime_s=-60.0), tmp_path)
    elif who == "not yet valid":  # a clock that is two days ahead
        flags = files(Identity(token, STRANGER, clock=lambda: time.time() + 2 * 86400).leaf(), tmp_path)
    answer, said = s_client(one.mesh_address, *flags)
    assert answer == b"", said


@pytest.mark.parametrize("scan", [["-tls1_2"], ["-tls1_1"], ["-alpn", "http/1.1"], []])
def test_a_port_scan_finds_nothing(fakes: Pair, scan: list[str]) -> None:
    _, (one, two) = fakes
    answer, _ = s_client(one.mesh_address, *scan, said=b"GET / HTTP/1.0\r\n\r\n")
    assert answer == b""
    assert one.peers() == {two.id}
