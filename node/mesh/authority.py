"""The certificate authority of a mesh: every holder of the token derives the same one."""

from __future__ import annotations

import datetime
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Authority:
    """The authority that a token's 32 secret bytes stand for. `mesh_id` is the hash of its public key, `kv_secret` what
    the mesh's checksums of KV are made with."""

    def __init__(self, secret: bytes) -> None:
        self.key = _key(secret)
        spki = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.mesh_id = hashlib.sha256(spki).hexdigest()[:16]
        # The mesh id in the subject makes a foreign certificate fail as "unknown issuer", not as a broken signature.
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"conclave mesh {self.mesh_id}")])
        self.certificate = self.vouch_for(self)
        self.kv_secret = _derived(secret, b"kv checksums", 16)

    def vouch_for(self, other: Authority) -> bytes:
        """A certificate of another authority's key, signed by this one (PEM): whoever trusts us trusts it by that."""
        # Everything but the signature's random part is the same on every node, so any node's leaf verifies against
        # any node's copy. The dates are fixed for the same reason: the authority lives as long as its token.
        public = other.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(other.name)
            .issuer_name(self.name)
            .serial_number(int(other.mesh_id, 16) or 1)
            .public_key(public)
            .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))  # RFC 5280: no end.
            # One authority may stand between: the new one, while an old token is accepted.
            .add_extension(x509.BasicConstraints(ca=True, path_length=1 if other is self else 0), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, True, False, False, False),  # key_cert_sign alone
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def utc(seconds: float) -> datetime.datetime:
    """A Unix time for a certificate."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    # 48 bytes reduced modulo the order leave a bias under 2^-128 (FIPS 186-5, A.2.1, key pairs by extra random bits).
    stream = _derived(secret, b"ca p-256 private key", 48)
    return ec.derive_private_key(int.from_bytes(stream, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def _derived(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length=length, salt=b"conclave mesh v1", info=info).derive(secret)
