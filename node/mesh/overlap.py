"""A mesh whose token was replaced: until when its nodes are still ours, and how they know that we are theirs.

A node that has both tokens tells everyone that it meets two certificates and a time, none of them secret. So nodes
that were given the new token alone take nodes that have only the old one, and show these the old authority's word for
the new one. No token is told to anyone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from node.mesh.authority import Authority
from node.v1 import mesh_pb2

MAX_BYTES = 4096  # of a certificate; ours have some 600
MAX_S = 366 * 86400.0  # `token new --overlap` takes no more


@dataclass(frozen=True, slots=True)
class Overlap:
    """The mesh `mesh_id` is ours too, until a Unix time in seconds. `root` is its authority's certificate, `word` what
    that says of our authority's key; both PEM."""

    mesh_id: str
    root: bytes
    word: bytes
    until: float


def of(old: Authority, new: Authority, until: float) -> Overlap:
    """The overlap of a token that was replaced, by who has both."""
    return Overlap(old.mesh_id, old.certificate, old.vouch_for(new), until)


def told(overlap: Overlap | None) -> mesh_pb2.Overlap | None:
    """An overlap for the wire."""
    if overlap is None:
        return None
    return mesh_pb2.Overlap(root=overlap.root, word=overlap.word, until_ms=int(overlap.until * 1000))


def heard(said: mesh_pb2.Overlap, ours: Authority, now: float) -> Overlap | None:
    """What a node of our mesh says of another that is ours too; None if that does not hold, or not any more."""
    until = said.until_ms / 1000
    if max(len(said.root), len(said.word)) > MAX_BYTES or not now < until <= now + MAX_S:
        return None
    try:
        root, word = x509.load_pem_x509_certificate(said.root), x509.load_pem_x509_certificate(said.word)
        root.verify_directly_issued_by(root)
        word.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return None
    key = _spki(root)
    if _spki(word) != _spki(x509.load_pem_x509_certificate(ours.certificate)) or key == _spki(word):
        return None
    pem = serialization.Encoding.PEM
    return Overlap(hashlib.sha256(key).hexdigest()[:16], root.public_bytes(pem), word.public_bytes(pem), until)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
