"""Who is in the mesh: one token, a certificate authority that every holder derives from it, a leaf certificate a node.

All nodes are equal: whoever holds the token has the authority's private key and issues its own leaf (ECDSA P-256, 24
hours, kept in memory only). A listener and a caller both demand a leaf of the same authority, so a stranger gets no
further than the handshake.

TLS version: gRPC's Python API cannot set a minimum. Two of our nodes negotiate TLS 1.3; a TLS 1.2 peer would need a
certificate of the mesh too, and `peer_id` refuses it by the negotiated version. The command line refuses it in the
handshake already, by an environment variable that gRPC reads when it is first imported (`node.cli.serve`): TLS 1.2 is
left only a cipher that needs an RSA certificate, which no node has (TLS 1.3 ciphers cannot be configured, so they
stay).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node import disk
from node.errors import InvalidRequest, Unauthenticated
from node.home import remedy
from node.mesh import overlap, unshared
from node.mesh.authority import Authority, utc
from node.mesh.overlap import Overlap
from node.v1 import mesh_pb2

TOKEN_PREFIX = "clv1-"
TOKEN_BYTES = 32
ANY_NODE = "mesh.conclave"  # The name in every leaf: for a caller that does not know yet whom it calls.
LEAF_S = 24 * 3600
BACKDATE_S = 3600  # Clocks in a home differ by minutes, after a dead battery by more.
RENEW_S = 8 * 3600  # A laptop that sleeps through a night wakes with a valid leaf.
MOST_S = LEAF_S + BACKDATE_S / 2  # With more left the clock was set back, and soon the leaf is not valid yet.
NODE_ID = re.compile(r"[a-z2-7]{8,16}")
_URI = "conclave://node/"


def new_token() -> str:
    """A fresh mesh token: `clv1-` and 32 random bytes in base64url without padding."""
    return TOKEN_PREFIX + _b64(secrets.token_bytes(TOKEN_BYTES))


def parse_token(text: str, source: str = "--token") -> bytes:
    """The 32 secret bytes of a token. Raises InvalidRequest, which names `source` and never repeats the token."""
    text = text.strip()
    hint = "copy the whole line that `python -m node token show` prints on a node of the mesh"
    if not text.startswith(TOKEN_PREFIX):
        raise InvalidRequest(f"the mesh token from {source} does not start with {TOKEN_PREFIX!r}: {hint}")
    body = text[len(TOKEN_PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the mesh token from {source} has characters that are not of a token: {hint}") from None
    if len(raw) != TOKEN_BYTES:
        raise InvalidRequest(
            f"the mesh token from {source} has {len(raw)} bytes instead of {TOKEN_BYTES}, so a part is missing: {hint}"
        )
    if _b64(raw) != body:
        raise InvalidRequest(f"the mesh token from {source} has a wrong last character: {hint}")
    return raw


def load_token(config: Path, override: str = "") -> str:
    """The mesh token: `override` if given, else the file `token` in `config`, which is made (0600) at first start.

    Of two processes that make it at once, both end with the same one. Raises InvalidRequest.
    """
    if override:
        parse_token(override)
        return override.strip()
    path = config / "token"
    is_new = not path.exists()
    token = _read_or_make(path, new_token)
    parse_token(token, str(path))
    if is_new:
        unshared.mark(config, token)
    return token


def store_token(config: Path, token: str) -> None:
    """Puts a token in the place of the stored one, atomically; it counts as shared. Raises InvalidRequest."""
    parse_token(token)
    (config / unshared.FILE).unlink(missing_ok=True)
    _write(config / "token", token.strip() + "\n", replace=True)


def keep_token(config: Path, token: str) -> str:
    """Stores what `--token` said, unless this machine has another token that other machines share. Returns a line for a
    person; "" where it is the stored one already. Raises InvalidRequest for what is no token.
    """
    parse_token(token)
    path = config / "token"
    try:
        stored = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
        if stored == token.strip():
            return ""
        if stored and not unshared.is_unshared(config):
            return (
                f"--token holds for this run only: the token in {path} is of another mesh, which other machines may "
                "share; to change to this one for good, use `python -m node pair`, there and here"
            )
        store_token(config, token)
        unshared.mark(config, token)
    except OSError as e:
        return f"--token holds for this run only: it cannot be kept in {path} ({e.strerror or e})"
    replaced = ", in the place of its own, which no other machine had" if stored else ""
    return f"the token is kept{replaced}: later runs need no --token"


@dataclass(frozen=True, slots=True)
class OldToken:
    """A token that was replaced and is still accepted, until a Unix time in seconds."""

    token: str
    until: float


def store_old_token(config: Path, old: OldToken) -> None:
    """Keeps what `token new --overlap` replaced in the file `token.old` (0600). Raises InvalidRequest."""
    parse_token(old.token)
    _write(config / "token.old", f"{old.token} {old.until:.0f}\n", replace=True)


def load_old_token(config: Path, now: float) -> OldToken | None:
    """The replaced token that is still accepted at `now`, if there is one. Raises InvalidRequest."""
    path = config / "token.old"
    if not path.exists():
        return None
    token, _, until = _read_or_make(path, str).partition(" ")
    parse_token(token, str(path))
    if not until.isdigit():
        raise InvalidRequest(f"{path} does not say until when the old token is accepted: remove it")
    return OldToken(token, float(until)) if now < float(until) else None


def new_node_id() -> str:
    """Ten random base32 characters."""
    return base64.b32encode(secrets.token_bytes(8)).decode().lower()[:10]


def load_node_id(data: Path) -> str:
    """This node's id: ten random base32 characters, made at first start and kept in `node_id` of its data directory.

    Raises InvalidRequest if the file holds something else.
    """
    path = data / "node_id"
    node_id = _read_or_make(path, new_node_id)
    if not NODE_ID.fullmatch(node_id):
        raise InvalidRequest(f"{path} does not hold a node id: remove it and the node makes itself a new one")
    return node_id


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate of one node with its key, both PEM. `expires` is Unix time in seconds."""

    key: bytes
    certificate: bytes
    expires: float


class Identity:
    """What a node needs to prove that it is of its mesh, and to check that another is.

    `clock` gives Unix time in seconds (tests move it). While an `old` token is accepted, or another node says that one
    is (`learn`), leaves of its mesh are good too, and ours come with the old authority's word for the new one, so that
    nodes of the old mesh take them. Raises InvalidRequest for a bad token or node id.
    """

    def __init__(
        self, token: str, node_id: str, *, old: OldToken | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        if not NODE_ID.fullmatch(node_id):
            raise InvalidRequest(f"node id {node_id!r} is not 8 to 16 characters of a-z and 2-7")
        self.node_id = node_id
        self._clock = clock
        self._authority = Authority(parse_token(token))
        self.mesh_id = self._authority.mesh_id
        self.ca_certificate = self._authority.certificate
        self.kv_secret = self._authority.kv_secret
        given = None if old is None else overlap.of(Authority(parse_token(old.token)), self._authority, old.until)
        self._overlap: Overlap | None = given
        self._lock = threading.Lock()  # gRPC asks for the server's leaf on threads of its own.
        self._leaf: Leaf | None = None
        self._served: tuple[Leaf, bytes] | None = None

    def mesh_ids(self) -> set[str]:
        """The meshes whose nodes are ours: one, and the old one while its token is accepted."""
        also = self.overlap()
        return {self.mesh_id} if also is None else {self.mesh_id, also.mesh_id}

    def roots(self) -> bytes:
        """The authorities whose leaves are accepted now, PEM."""
        also = self.overlap()
        return self.ca_certificate if also is None else self.ca_certificate + also.root

    def overlap(self) -> Overlap | None:
        """The other mesh whose nodes are ours now, if there is one."""
        return self._overlap if self._overlap is not None and self._clock() < self._overlap.until else None

    def learn(self, said: mesh_pb2.Overlap) -> None:
        """A node of our mesh says that another one is ours too. One at a time: what is known already stays."""
        if self.overlap() is not None or not said.root:
            return
        if (found := overlap.heard(said, self._authority, self._clock())) is not None:
            with self._lock:
                self._overlap, self._leaf = found, None  # the next leaf comes with the word for us

    def leaf(self) -> Leaf:
        """The current leaf; a new one when less than 8 hours of it remain, or more than it was made for: a clock that
        was ahead at the start, and was set right, leaves one that is not valid yet."""
        with self._lock:
            if self._leaf is None or not RENEW_S <= self._leaf.expires - self._clock() <= MOST_S:
                self._leaf = self.issue()
            return self._leaf

    def issue(self, *, lifetime_s: float = LEAF_S) -> Leaf:
        """A fresh leaf with its own key, valid from an hour ago for `lifetime_s` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.node_id)]))
            .issuer_name(self._authority.name)
            .serial_number(x509.random_serial_number())
            .public_key(key.public_key())
            .not_valid_before(utc(min(now, now + lifetime_s) - BACKDATE_S))
            .not_valid_after(utc(now + lifetime_s))
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.DNSName(server_name(self.node_id)),
                        x509.DNSName(ANY_NODE),
                        x509.UniformResourceIdentifier(_URI + self.node_id),
                    ]
                ),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.key.public_key()), critical=False
            )
        )
        certificate = builder.sign(self._authority.key, hashes.SHA256())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        if (also := self.overlap()) is not None:
            chain += also.word
        return Leaf(pem, chain, now + lifetime_s)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a mesh listener: callers must show a leaf; our own leaf is renewed under way."""
        self._served = self.leaf(), self.roots()
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(*self._served),
            self._renewed,  # type: ignore[arg-type]  # None is documented as "no change"; the stubs leave it out.
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of one connection, with the current leaf; make fresh ones for each channel."""
        leaf = self.leaf()
        return grpc.ssl_channel_credentials(self.roots(), leaf.key, leaf.certificate)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC before each handshake; None means that nothing changed.
        now = self.leaf(), self.roots()
        if now == self._served:
            return None
        self._served = now
        return self._server_configuration(*now)

    def _server_configuration(self, leaf: Leaf, roots: bytes) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(leaf.key, leaf.certificate)], roots)


def server_name(node_id: str) -> str:
    """The DNS name in a node's leaf, by which a caller pins whom it calls."""
    return f"{node_id}.node.conclave"


def peer_id(auth: Mapping[str, Iterable[bytes]]) -> str:
    """The node id of a caller, from `context.auth_context()`, proved by its certificate.

    Raises Unauthenticated if it has none, or did not come over TLS 1.3.
    """
    if b"TLSv1.3" not in auth.get("ssl_tls_version", ()):
        raise Unauthenticated("this listener takes TLS 1.3 with a certificate of the mesh only")
    names = [n.decode("ascii", "replace") for n in auth.get("peer_uri", ())]
    ids = [n[len(_URI) :] for n in names if n.startswith(_URI)]
    if len(ids) != 1 or not NODE_ID.fullmatch(ids[0]):
        raise Unauthenticated("the caller's certificate names no node: it needs a certificate of this mesh")
    return ids[0]


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _read_or_make(path: Path, make: Callable[[], str]) -> str:
    try:
        if not path.exists():
            _write(path, make() + "\n", replace=False)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path.read_text(encoding="utf-8", errors="replace")[:1024].strip()
    except OSError as e:
        raise InvalidRequest(f"cannot read or write {path}: {e.strerror or e}; {remedy(e)}") from e


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Writes a 0600 file in one step. Without `replace` an existing file stays: the first of two writers wins."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it 0600.
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                disk.sync(f.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)  # Unlike a rename it fails where the other process was first.
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as e:
        e.filename = e.filename or str(path)  # what fails at a full disk names no file
        raise
