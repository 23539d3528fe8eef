"""A snapshot on its way in, part by part."""

from __future__ import annotations

import asyncio
import contextlib

from node.core import block
from node.core.refusal import Reason, refuse
from node.core.snapshot import Block, Header
from node.errors import ConclaveError
from node.replicator.incoming import Put
from node.replicator.snapshots import Snapshots, count
from node.v1 import kvsync_pb2

MAX_CHUNK_BYTES = 1 << 20  # a message costs 0.3 ms at both ends, so a block is one where it can be
# What a part counts for at least, so that empty ones come to an end too.
LEAST_PART = 1024


class Receiver:
    """One snapshot on its way in: a header, then chunks of its missing blocks. Every block is given to `put` as it is
    whole, on another thread; it must check it."""

    def __init__(self, snapshots: Snapshots, put: Put) -> None:
        self._snapshots = snapshots
        self.put = put
        self.head: Header | None = None
        self.bytes = 0
        self._spent = 0
        self._wanted: dict[bytes, Block] = {}
        self._known: set[bytes] = set()  # blocks of the snapshot that are here already
        self._key = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._put: asyncio.Future[None] | None = None

    def begin(self, data: bytes) -> Header:
        """The header. Raises CorruptSnapshot or IncompatibleSnapshot."""
        if self.head is not None:
            raise count(refuse(Reason.MALFORMED, "it has two headers"))
        self.head = self._snapshots.check(data)
        self._wanted = {b.key: b for b in self._snapshots.missing(self.head)}
        self._known = {b.key for b in self.head.blocks} - set(self._wanted)
        return self.head

    async def feed(self, chunk: kvsync_pb2.BlockChunk) -> None:
        """A part of a block; they come in order, one block after the other. Raises CorruptSnapshot, OSError."""
        key, data = chunk.key, chunk.data
        each = self._wanted.get(key)
        self.bytes += len(data)
        self._spent += max(len(data), LEAST_PART)
        if self.head is not None and self._spent > self._allowed(self.head):
            raise count(refuse(Reason.TOO_LARGE, "it sends more than its blocks have"))
        if key in self._known and not self._parts:
            return  # it was sent once more, or the sender did not know that it is here
        if self.head is None or (each is None and not self._parts):
            raise count(refuse(Reason.UNWANTED, "it sends a block that was not asked for"))
        if self._parts and key != self._key:
            raise count(refuse(Reason.MALFORMED, "a block begins before another has ended"))
        assert each is not None
        if chunk.offset != self._size or len(data) > MAX_CHUNK_BYTES or (not data and not chunk.last):
            raise count(refuse(Reason.MALFORMED, "a part of a block is out of place"))
        if self._size + len(data) > each.size + block.HEAD_BYTES:
            raise count(refuse(Reason.SIZE, "a block is larger than its rows"))
        self._key = key
        self._parts.append(data)
        self._size += len(data)
        if chunk.last:
            whole = b"".join(self._parts)
            self._parts, self._size = [], 0
            del self._wanted[key]
            self._known.add(key)
            await self._put_done()
            self._put = asyncio.ensure_future(asyncio.to_thread(self.put, each, whole))
            self._put.add_done_callback(lambda put: put.cancelled() or put.exception())

    def _allowed(self, head: Header) -> int:
        return head.size + len(head.blocks) * (block.HEAD_BYTES + LEAST_PART)

    async def _put_done(self) -> None:
        """Wait for the block before, which was checked and written while this one came."""
        if self._put is not None:
            put, self._put = self._put, None
            await put

    async def finish(self) -> Header:
        """All must have come. Raises CorruptSnapshot, OSError."""
        await self._put_done()
        if self.head is None or self._wanted or self._parts:
            raise count(refuse(Reason.MISSING, "it ends before all of its blocks have come"))
        return self.head

    async def break_off(self) -> None:
        """Wait for the block that is being put, whatever becomes of it."""
        with contextlib.suppress(ConclaveError, OSError):
            await self._put_done()
