"""A block of KV rows as it lies on disk and goes over the wire: encoded, bounded, and checked when it is read.

    4s magic   u8 codec   u8 shuffled width   u16 zero   u32 bytes of the rows   16s checksum   the payload

The checksum is over the block's key and its rows, so a block under another's name is found out, and it is made with a
secret of the mesh, so that rows cannot be changed with a checksum put right by whoever does not have it: another
program that writes to the disk, say. Whoever has the mesh's token can lie in rows as he can in words.

Rows of floats hardly compress as they are: bytes are shuffled first (all first bytes, then all second ones), so that
exponents stand together; even so it pays on slow links only (`choose`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum

import lz4.block
import numpy as np
import xxhash
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.core.blob import TYPES, Bytes, Plane
from node.core.refusal import Reason, refuse

_HEAD = struct.Struct("<4sBBHI16s")
HEAD_BYTES = _HEAD.size
MAGIC = b"CKB2"
DIGEST_BYTES = 16
SECRET_BYTES = 16
# Of nobody, for tests and for a node without a mesh.
NO_SECRET = bytes(SECRET_BYTES)
ZSTD_LEVEL = 1
# Below this share saved, the rows are stored as they are: reading them back costs nothing then.
WORTH = 0.97


class Codec(StrEnum):
    """How a block's rows are compressed."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"


_IDS = {Codec.NONE: 0, Codec.LZ4: 1, Codec.ZSTD: 2}


def checksum(key: bytes, rows: Bytes, secret: bytes = NO_SECRET) -> bytes:
    """The checksum of a block: GMAC (NIST SP 800-38D) with the mesh's secret, its nonce XXH3 of the same bytes, which
    repeats for the same bytes alone unless somebody who has the secret wants it to. With 0.75 MB on one core: 12 GB/s
    (SHA-256 1.7, BLAKE3 5.9)."""
    nonce = xxhash.xxh3_128(key)
    nonce.update(rows.data)
    mac = Cipher(algorithms.AES(secret), modes.GCM(nonce.digest()[:12])).encryptor()
    mac.authenticate_additional_data(key)
    mac.authenticate_additional_data(rows.data)
    mac.finalize()
    return mac.tag


def encode(key: bytes, rows: Bytes, codec: Codec = Codec.NONE, width: int = 1, secret: bytes = NO_SECRET) -> bytes:
    """A block of these rows under this key. `width` is the bytes of a number, for shuffling."""
    digest = checksum(key, rows, secret)
    if codec is not Codec.NONE:
        width = width if 1 < width < 256 and rows.nbytes % width == 0 else 1
        plain = (rows.reshape(-1, width).T if width > 1 else rows).tobytes()
        if codec is Codec.LZ4:
            packed = bytes(lz4.block.compress(plain, store_size=False))
        else:
            packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(plain)
        if len(packed) < WORTH * rows.nbytes:
            return _HEAD.pack(MAGIC, _IDS[codec], width, 0, rows.nbytes, digest) + packed
    return b"".join((_HEAD.pack(MAGIC, 0, 1, 0, rows.nbytes, digest), rows.data))


def decode(key: bytes, data: bytes, size: int, secret: bytes = NO_SECRET) -> Bytes:
    """The rows of a block that must be `size` bytes; nothing larger is ever allocated. Raises CorruptSnapshot."""
    if not HEAD_BYTES <= len(data) <= HEAD_BYTES + size:
        raise refuse(Reason.SIZE, f"a block of {size} bytes came as {len(data)}")
    magic, codec, width, zero, stated, digest = _HEAD.unpack_from(data)
    if magic != MAGIC or zero or not width or codec not in _IDS.values():
        raise refuse(Reason.MALFORMED, "a block has no head of ours")
    if stated != size or size % width:
        raise refuse(Reason.SIZE, f"a block of {size} bytes says it has {stated}")
    rows = np.frombuffer(_inflate(codec, memoryview(data)[HEAD_BYTES:], size), np.uint8)
    if rows.nbytes != size:
        raise refuse(Reason.SIZE, f"a block of {size} bytes holds {rows.nbytes}")
    if width > 1:
        rows = np.ascontiguousarray(rows.reshape(width, -1).T).ravel()
    if checksum(key, rows, secret) != digest:
        raise refuse(Reason.CHECKSUM, "a block's checksum is not that of its rows")
    return rows


def digest_of(data: bytes) -> bytes:
    """The checksum that an encoded block states."""
    return bytes(_HEAD.unpack_from(data)[5])


def _inflate(codec: int, payload: memoryview, size: int) -> bytes | memoryview:
    try:
        if codec == _IDS[Codec.LZ4]:
            return lz4.block.decompress(payload, uncompressed_size=size)  # type: ignore[no-any-return]
        if codec == _IDS[Codec.ZSTD]:
            # The frame's own word decides what zstandard allocates, so it is read first.
            if zstandard.frame_content_size(payload) != size:
                raise refuse(Reason.SIZE, "a block's frame states another size")
            return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
                payload, max_output_size=size, allow_extra_data=False
            )
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError, MemoryError, OverflowError):
        raise refuse(Reason.MALFORMED, "a block cannot be decompressed") from None
    return payload


def shuffle_width(planes: Sequence[Plane]) -> int:
    """The bytes after which a number of these rows repeats its form; 1 where planes differ."""
    widths = {TYPES[plane.type][0] for plane in planes if plane.type in TYPES}
    return widths.pop() if len(widths) == 1 else 1


def numbers_are_finite(rows: Bytes, planes: Sequence[Plane], tokens: int) -> bool:
    """Whether no number of a block is NaN or infinite: such rows would poison every sequence of a context."""
    if len({plane.type for plane in planes}) == 1:
        return _finite(rows, planes[0].type)
    at = 0
    for plane in planes:
        values = rows[at : at + tokens * plane.row]
        at += values.nbytes
        if not _finite(values, plane.type):
            return False
    return True


def _finite(values: Bytes, kind: int) -> bool:
    # An exponent of ones means NaN or infinite; the block formats begin with an f16 that scales the rest.
    if kind == 0:
        return not bool(((values.view("<u4") & 0x7F800000) == 0x7F800000).any())
    if kind == 30:
        return not bool(((values.view("<u2") & 0x7F80) == 0x7F80).any())
    block = TYPES[kind][0]
    scales = values.view("<u2") if block == 2 else np.ascontiguousarray(values.reshape(-1, block)[:, :2]).view("<u2")
    return not bool(((scales & 0x7C00) == 0x7C00).any())


def choose(ratio: float, pack_s_per_byte: float, link_s_per_byte: float) -> bool:
    """Whether compressing is quicker than not: what it saves on the link is more than what it costs here and there.

    `ratio` is packed bytes by plain bytes; unpacking is taken to cost half of packing.
    """
    return (1.0 - ratio) * link_s_per_byte > 1.5 * pack_s_per_byte
