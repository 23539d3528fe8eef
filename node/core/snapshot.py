"""Snapshots of a topic's KV: the header, the keys of its blocks, and every check before native code sees a byte.

A snapshot is a header and blocks. A block holds the rows of at most 64 tokens; its key is a hash over the key before
it, its tokens and the model's fingerprint (as in vLLM and LMCache), so equal prefixes have equal keys, whatever topic
they stand in, and are stored and sent once. Blocks never cross a multiple of 64, and an old snapshot's last block stays
as it was when the topic grows, so a turn costs the rows of its new tokens and nothing twice.

What a peer or a disk says is checked here, in this order, before it is used: size of the header, its form, fingerprint,
layout, tokens (count, vocabulary), cuts, keys, sizes; then each block's size, checksum and numbers. Positions, cell
counts, types and row sizes are not taken from anybody: the state is written anew by `node.core.blob`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np

from node.core import blob, block
from node.core.blob import Bytes, Layout, Rows
from node.core.refusal import Reason, refuse
from node.types import Version

BLOCK_TOKENS = 64
KEY_BYTES = 16
FORMAT = 1
MAX_HEADER_BYTES = 8 << 20  # 4 bytes a token and some 40 a block: a context of a million tokens has 5 MiB
MAX_BLOCKS = 1 << 16
MAX_TOPIC_BYTES = 256
MAX_NUMBER = 1 << 62
# What a topic grows by, and the end of its first snapshot, is cut finer: an answer whose text reads as other tokens in
# the next prompt than those that were sampled is replaced from there on, and only whole blocks can be kept.
GROWTH_TOKENS = 16
END_TOKENS = 128
# More blocks than this for each 64 tokens, and the next snapshot is cut anew, which sends it again.
MOST_CUTS = 10


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a snapshot: `tokens` of them from position `first` on, in one part of the cache."""

    key: bytes
    part: int
    first: int
    tokens: int
    size: int  # bytes of its rows
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Ours:
    """What a snapshot must fit: our model's fingerprint, its KV's layout, its vocabulary, a sequence's tokens, and the
    secret of our mesh that its checksums are made with."""

    fingerprint: str
    layout: Layout
    vocabulary: int
    context: int
    secret: bytes = block.NO_SECRET


@dataclass(frozen=True, slots=True)
class Header:
    """What a snapshot is of. `lengths` are the tokens of its blocks; `blocks` are those of all parts."""

    topic: str
    version: Version
    fingerprint: str
    layout: bytes
    tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return sum(b.size for b in self.blocks)

    def pack(self) -> bytes:
        """The header as it is sent and stored."""
        v = self.version
        return msgpack.packb(  # type: ignore[no-any-return]
            {
                "format": FORMAT,
                "topic": self.topic,
                "version": [v.epoch, v.turn, v.node_id],
                "fingerprint": self.fingerprint,
                "layout": self.layout,
                "tokens": np.asarray(self.tokens, "<u4").tobytes(),
                "lengths": bytes(self.lengths),
                "blocks": [[b.key, b.size, b.digest] for b in self.blocks],
            }
        )


# ---- making one -----------------------------------------------------------------------------------------------------


def lengths(tokens: Sequence[int], before: Header | None = None) -> tuple[int, ...]:
    """How a snapshot is cut: as the one before as far as its tokens are the same, then at multiples of 16; where there
    is none before, at multiples of 64 but for the end, so that equal prompts of several topics are cut alike."""
    out: list[int] = []
    at = 0
    if before is not None:
        for length in before.lengths:
            if at + length > len(tokens) or tuple(tokens[at : at + length]) != before.tokens[at : at + length]:
                break
            out.append(length)
            at += length
    grows = at > 0
    while at < len(tokens):
        step = GROWTH_TOKENS if grows or len(tokens) - at <= END_TOKENS else BLOCK_TOKENS
        length = min(step - at % step, len(tokens) - at)
        out.append(length)
        at += length
    if before is not None and len(out) > MOST_CUTS * (len(tokens) // BLOCK_TOKENS + 1):
        return lengths(tokens)
    return tuple(out)


def blocks(
    tokens: Sequence[int], cuts: Sequence[int], fingerprint: str, layout: Layout, secret: bytes = block.NO_SECRET
) -> tuple[Block, ...]:
    """The blocks of a snapshot that is cut like this, those of the window last, without digests.

    Keys are of one mesh: what another's checksums are made for is refused by its header, before a block is sent.
    """
    ids = np.asarray(tokens, "<u4")
    begin = fingerprint.encode() + layout.digest
    key = hashlib.blake2b(begin, key=secret, digest_size=KEY_BYTES, person=b"conclave kv").digest()
    out: list[Block] = []
    windows: list[Block] = []
    at, start = 0, layout.window_start(len(tokens))
    for length in cuts:
        end = at + length
        key = hashlib.blake2b(key + ids[at:end].tobytes(), digest_size=KEY_BYTES).digest()
        out.append(Block(key, 0, at, length, length * layout.token_bytes))
        if layout.window and end > start:
            first = max(at, start)
            name = hashlib.blake2b(key + b"window" + bytes([first - at]), digest_size=KEY_BYTES).digest()
            windows.append(Block(name, 1, first, end - first, (end - first) * layout.window_bytes))
        at = end
    return (*out, *windows)


def header(topic: str, version: Version, tokens: Sequence[int], ours: Ours, before: Header | None = None) -> Header:
    """The header of a snapshot of our own, without digests; `before` is the topic's last one."""
    if before is not None and (before.fingerprint, before.layout) != (ours.fingerprint, ours.layout.digest):
        before = None
    cuts = lengths(tokens, before)
    made = blocks(tokens, cuts, ours.fingerprint, ours.layout, ours.secret)
    return Header(topic, version, ours.fingerprint, ours.layout.digest, tuple(tokens), cuts, made)


def encode(
    head: Header,
    held: dict[bytes, bytes],
    rows: Sequence[Rows],
    codec: block.Codec,
    width: int,
    secret: bytes = block.NO_SECRET,
) -> tuple[Header, dict[bytes, bytes]]:
    """The header with its digests, and the blocks that `held` (key -> digest) lacks, from rows that reach back far
    enough. Raises ValueError if they do not."""
    out: list[Block] = []
    made: dict[bytes, bytes] = {}
    for each in head.blocks:
        if each.key in held:
            out.append(replace(each, digest=held[each.key]))
        else:
            cut = rows[each.part].cut(each.first, each.first + each.tokens)
            made[each.key] = block.encode(each.key, cut, codec, width, secret)
            out.append(replace(each, digest=block.digest_of(made[each.key])))
    return replace(head, blocks=tuple(out)), made


# ---- checking one ---------------------------------------------------------------------------------------------------


def check(data: bytes, ours: Ours) -> Header:
    """A header from a peer or a disk, checked against our own model. Raises CorruptSnapshot, IncompatibleSnapshot."""
    fields = _fields(data)
    fingerprint, layout, raw = fields["fingerprint"], fields["layout"], fields["tokens"]
    if fingerprint != ours.fingerprint:
        raise refuse(Reason.FINGERPRINT, f"it is of a model with the fingerprint {fingerprint[:16]}, not of ours")
    if layout != ours.layout.digest:
        raise refuse(Reason.LAYOUT, "its KV has another layout than ours")
    count, rest = divmod(len(raw), 4)
    if rest or not 0 < count <= ours.context:
        raise refuse(Reason.TOKENS, f"it has {count} tokens and a sequence holds {ours.context}")
    tokens = np.frombuffer(raw, "<u4")
    if int(tokens.max()) >= ours.vocabulary:
        raise refuse(Reason.TOKENS, f"it has the token {int(tokens.max())}, and the vocabulary {ours.vocabulary}")
    cuts = tuple(fields["lengths"])
    _check_cuts(cuts, count)
    ids = tuple(tokens.tolist())
    expected = blocks(ids, cuts, ours.fingerprint, ours.layout, ours.secret)
    stated = fields["blocks"]
    if len(stated) != len(expected):
        raise refuse(Reason.KEYS, f"it has {len(stated)} blocks where its tokens have {len(expected)}")
    out = []
    for each, entry in zip(expected, stated, strict=True):
        if not isinstance(entry, list) or [type(x) for x in entry] != [bytes, int, bytes]:
            raise refuse(Reason.MALFORMED, "a block is not described as it must be")
        key, size, digest = entry
        if key != each.key:
            raise refuse(Reason.KEYS, "a block's key is not that of its tokens")
        if size != each.size or len(digest) != block.DIGEST_BYTES:
            raise refuse(Reason.SIZE, f"a block of {each.size} bytes is said to have {size}")
        out.append(replace(each, digest=digest))
    epoch, turn, node = fields["version"]
    version = Version(epoch, turn, node)
    return Header(fields["topic"], version, fingerprint, layout, ids, cuts, tuple(out))


def _fields(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_HEADER_BYTES:
        raise refuse(Reason.TOO_LARGE, f"its header is {len(data)} bytes, at most {MAX_HEADER_BYTES} are read")
    try:
        found = msgpack.unpackb(
            data,
            max_str_len=1 << 12,
            max_bin_len=MAX_HEADER_BYTES,
            max_array_len=MAX_BLOCKS,
            max_map_len=16,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException):
        raise refuse(Reason.MALFORMED, "its header cannot be read") from None
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != _TYPES or found["format"] != FORMAT:
        raise refuse(Reason.MALFORMED, "its header is not of a form that is known here")
    version = found["version"]
    if [type(x) for x in version] != [int, int, str] or not all(0 <= x <= MAX_NUMBER for x in version[:2]):
        raise refuse(Reason.MALFORMED, "its version is none")
    names = (found["topic"], version[2])
    if not found["topic"] or any(len(n.encode(errors="replace")) > MAX_TOPIC_BYTES for n in names):
        raise refuse(Reason.MALFORMED, "its topic has no name, or one that is too long")
    return found


def summary(data: bytes) -> tuple[str, Version, int, tuple[bytes, ...]]:
    """The topic, version, tokens and block keys that a header states, unchecked: for keeping house. Raises
    CorruptSnapshot."""
    fields = _fields(data)
    keys = tuple(e[0] for e in fields["blocks"] if isinstance(e, list) and e and isinstance(e[0], bytes))
    if len(keys) != len(fields["blocks"]) or any(len(key) != KEY_BYTES for key in keys):
        raise refuse(Reason.MALFORMED, "a block is not described as it must be")
    return fields["topic"], Version(*fields["version"]), len(fields["tokens"]) // 4, keys


_TYPES = {
    "format": int, "topic": str, "version": list, "fingerprint": str, "layout": bytes, "tokens": bytes,
    "lengths": bytes, "blocks": list,
}  # fmt: skip


def _check_cuts(cuts: Sequence[int], tokens: int) -> None:
    at = 0
    for length in cuts:
        if not 0 < length <= BLOCK_TOKENS - at % BLOCK_TOKENS:
            raise refuse(Reason.CUTS, f"a block of {length} tokens at position {at}")
        at += length
    if at != tokens or len(cuts) > MAX_BLOCKS:
        raise refuse(Reason.CUTS, f"its blocks hold {at} tokens and it has {tokens}")


def check_block(each: Block, data: bytes, ours: Ours, *, digest: bytes | None = None) -> Bytes:
    """A block's rows, checked. `digest` is the one that its header states, where it comes with it. Raises
    CorruptSnapshot."""
    rows = block.decode(each.key, data, each.size, ours.secret)
    if digest is not None and block.digest_of(data) != digest:
        raise refuse(Reason.CHECKSUM, "a block's checksum is not the one that its header states")
    if not block.numbers_are_finite(rows, ours.layout.parts[each.part], each.tokens):
        raise refuse(Reason.NUMBERS, "a block holds numbers that are none")
    return rows


class Assembly:
    """The state of a checked header on its way; blocks come in any order, from any thread."""

    def __init__(self, head: Header, ours: Ours) -> None:
        self._ours = ours
        self._writer = blob.Writer(ours.layout, len(head.tokens))

    def add(self, each: Block, data: bytes | None, *, digest: bytes | None = None) -> None:
        """Check a block and put it where it belongs. Raises CorruptSnapshot."""
        if data is None:
            raise refuse(Reason.MISSING, "one of its blocks is not here")
        self._writer.put(each.part, each.first, check_block(each, data, self._ours, digest=digest))

    def state(self) -> Bytes:
        """All of it, for llama.cpp. Raises ValueError if blocks were left out."""
        return self._writer.state()


def assemble(head: Header, ours: Ours, load: Callable[[bytes], bytes | None]) -> Bytes:
    """The state of a checked header for llama.cpp; `load` gives a block by its key. Raises CorruptSnapshot."""
    assembly = Assembly(head, ours)
    for each in head.blocks:
        assembly.add(each, load(each.key))
    return assembly.state()


# ---- deciding -------------------------------------------------------------------------------------------------------


def missing(head: Header, held: Callable[[bytes], bool]) -> list[Block]:
    """The blocks of a snapshot that are not held, each once."""
    seen: set[bytes] = set()
    out = []
    for each in head.blocks:
        if each.key not in seen and not held(each.key):
            out.append(each)
        seen.add(each.key)
    return out


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine measured, seconds a byte: a link to a peer, reading and checking blocks, restoring."""

    link_s: float = 1e-8  # 100 MB/s, as gigabit Ethernet
    codec_s: float = 2e-9
    restore_s: float = 2e-10


def is_worth(tokens: int, prefill_s: float, all_bytes: int, missing_bytes: int, rates: Rates) -> bool:
    """Whether taking over a snapshot is quicker than prefilling its `tokens` tokens at `prefill_s` each."""
    took = missing_bytes * rates.link_s + all_bytes * (rates.codec_s + rates.restore_s)
    return took < tokens * prefill_s


def goes_on(elapsed_s: float, got: int, missing_bytes: int, prefill_s: float) -> bool:
    """Whether a snapshot of which `got` bytes have come is still worth waiting for, where computing it would take
    `prefill_s` seconds: what was waited is lost either way, so the rest at the rate so far is what counts."""
    return elapsed_s < prefill_s or (got > 0 and (missing_bytes - got) * elapsed_s / got < prefill_s)
