"""Snapshots between nodes: offered, pushed, pulled. A transfer that breaks off leaves whole blocks behind, so the next
one goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from typing import Any, TypeVar

from node import metrics, wire
from node.core import snapshot
from node.core.refusal import Reason, refuse
from node.core.snapshot import Block, Header
from node.errors import ConclaveError, CorruptSnapshot, PeerUnavailable
from node.mesh.peer import Peer
from node.replicator.incoming import Incoming, Put
from node.replicator.rates import Measured, Pace
from node.replicator.receiver import MAX_CHUNK_BYTES, Receiver
from node.replicator.snapshots import Snapshots, count
from node.replicator.travels import Travels
from node.store import Store
from node.types import Version
from node.v1 import kvsync_pb2

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = MAX_CHUNK_BYTES
PACED_CHUNK_BYTES = 64 << 10  # under a cap, what goes at once should be short
OFFER_S = 5.0
WARMING_BYTES, MEASURING_BYTES, MOST_MEASURING_BYTES = 128 << 10, 1 << 20, 4 << 20
MEASURING_S = 0.5  # what came by then tells enough
# A push or pull may take this long, and as long again as its bytes take at this rate: slower than that is a hang.
TRANSFER_S = 30.0
SLOWEST_BYTES_PER_S = 32_000.0
# Less time than this is not given to a pull, however soon the prompt could be computed: connecting alone may take it.
LEAST_PULL_S = 1.0
# A pull that goes on may take so many times what computing would.
MOST_PULLING = 3.0
# Who pushes and sends nothing for so long has gone, or means to hold on to what a push takes here.
PART_S = 15.0
# Pushes at a time from all peers: two from each node of a swarm of eight; each holds a block at most.
MAX_INCOMING = 16


class Transfer:
    """Offers, pushes and pulls of this node, as the one who calls and as the one who is called."""

    def __init__(self, snapshots: Snapshots, store: Store, measured: Measured, pace: Pace, travels: Travels) -> None:
        self._snapshots = snapshots
        self._travels = travels
        self._store = store
        self._measured = measured
        self._pace = pace
        self._incoming = 0

    # ---- calling ----

    async def push(self, peer: Peer, head: Header) -> bool:
        """Give a peer a snapshot, as far as it lacks it. Says whether it holds it now. Raises ConclaveError."""
        packed = head.pack()
        offer = kvsync_pb2.OfferRequest(header=packed)
        answer = await peer.call(peer.bulk.Offer, offer, OFFER_S)
        if answer.reason:
            log.info("node %s does not want a snapshot: %s", peer.id, answer.reason)
            return False
        wanted = set(answer.missing)
        if not wanted and answer.HasField("held") and wire.version(answer.held) >= head.version:
            return True
        blocks = [b for b in head.blocks if b.key in wanted]
        size = sum(b.size for b in blocks)
        started = time.monotonic()
        sent = _Sent()
        done = await peer.call(peer.bulk.Push, self._parts(packed, blocks, sent), TRANSFER_S + self._seconds(size))
        metrics.SYNC_BYTES.labels("sent", "snapshot").inc(sent.bytes + len(packed))
        self._measured.moved(peer.id, sent.bytes, time.monotonic() - started)
        if done.accepted and sent.bytes:
            self._travels.sent(peer.id, head.topic, sent.bytes, len(head.tokens))
        if not done.accepted:
            log.info("node %s did not take a snapshot: %s", peer.id, done.reason)
        return bool(done.accepted)

    async def _parts(self, packed: bytes, blocks: Iterable[Block], sent: _Sent) -> AsyncIterator[Any]:
        yield kvsync_pb2.PushRequest(header=packed)
        async for each, offset, data, last in self._chunks(blocks):
            sent.bytes += len(data)
            part = kvsync_pb2.PushRequest()
            _fill(part.chunk, each.key, offset, data, last)
            yield part

    async def _chunks(self, blocks: Iterable[Block]) -> AsyncIterator[tuple[Block, int, bytes, bool]]:
        """Parts of encoded blocks: where each begins, its bytes, and whether it is the block's last."""
        async for data, each in self._read(blocks):
            if data is None:
                raise CorruptSnapshot("a block of the snapshot is gone from the disk")
            step = PACED_CHUNK_BYTES if self._pace.is_on else CHUNK_BYTES
            for offset in range(0, len(data), step):
                part = data[offset : offset + step]
                await self._pace.take(len(part))
                yield each, offset, part, offset + step >= len(data)

    async def _read(self, blocks: Iterable[Block]) -> AsyncIterator[tuple[bytes | None, Block]]:
        """Encoded blocks from the disk; the next one is read while one is sent."""
        before: tuple[asyncio.Future[bytes | None], Block] | None = None
        for each in blocks:
            reading = asyncio.ensure_future(asyncio.to_thread(self._snapshots.blocks.get, each.key))
            if before is not None:
                yield await before[0], before[1]
            before = reading, each
        if before is not None:
            yield await before[0], before[1]

    def _seconds(self, size: int) -> float:
        return size / SLOWEST_BYTES_PER_S

    async def pull(self, peer: Peer, topic: str, tokens: int, prefill_s: float) -> Incoming | None:
        """Take a peer's snapshot if that is quicker than prefilling `tokens` tokens at `prefill_s` seconds each: into
        memory, not yet to the disk. None: it is not, or the peer has none. Raises ConclaveError, OSError."""
        ours = self._snapshots.ours
        if ours is None:
            return None
        mine = await self._snapshots.header(topic)
        request = kvsync_pb2.PullRequest(
            topic=topic,
            held=[b.key for b in mine.blocks] if mine else [],
            fingerprint=ours.fingerprint,
            version=wire.held_pb(self._store.version(topic)),
        )
        limit = max(tokens * prefill_s, LEAST_PULL_S)
        receiver = Receiver(self._snapshots, _unexpected)
        incoming: Incoming | None = None
        loading: asyncio.Future[None] | None = None
        started = time.monotonic()
        size = 0
        try:
            async with contextlib.aclosing(peer.stream(peer.bulk.Pull, request, MOST_PULLING * limit)) as parts:
                async for part in _in_time(parts, limit):
                    if part.HasField("header"):
                        head = receiver.begin(part.header)
                        if head.topic != topic:
                            raise count(refuse(Reason.UNWANTED, "it is of another topic"))
                        lacking = self._snapshots.missing(head)
                        rates = self._measured.rates(peer.id)
                        size = sum(b.size for b in lacking)
                        if not snapshot.is_worth(min(tokens, len(head.tokens)), prefill_s, head.size, size, rates):
                            self._measured.doubt(peer.id)
                            return None
                        incoming = await asyncio.to_thread(self._snapshots.incoming, head)  # 25 MB of new pages
                        receiver.put = self._counted(incoming.add)
                        new = {b.key for b in lacking}
                        loading = asyncio.ensure_future(incoming.load([b for b in head.blocks if b.key not in new]))
                    elif part.HasField("chunk"):
                        await receiver.feed(part.chunk)
                        if not snapshot.goes_on(time.monotonic() - started, receiver.bytes, size, limit):
                            raise PeerUnavailable(f"node {peer.id} sends too slowly")
            if incoming is None or loading is None:
                return None
            metrics.SYNC_BYTES.labels("received", "snapshot").inc(receiver.bytes)
            self._measured.moved(peer.id, receiver.bytes, time.monotonic() - started)
            await receiver.finish()
            await loading
            self._travels.received(peer.id, topic, receiver.bytes, len(incoming.head.tokens))
        except BaseException as e:
            if loading is not None:
                loading.cancel()
            await receiver.break_off()
            if incoming is not None:
                try:
                    await asyncio.to_thread(incoming.keep)
                except OSError as failed:  # and what went wrong before, or that this was cancelled, is still to be said
                    self._snapshots.failed(failed)
            if isinstance(e, TimeoutError):
                raise PeerUnavailable(f"nothing came from node {peer.id} for {limit:.1f} s") from None
            raise
        return incoming

    def _counted(self, put: Put) -> Put:
        def counted(each: Block, data: bytes) -> None:
            try:
                put(each, data)
            except ConclaveError as e:
                raise count(e) from None

        return counted

    async def measure(self, peer: Peer) -> None:
        """Learn how quick the link to a peer is, before anything has to be decided by it. Raises ConclaveError."""
        for size in (WARMING_BYTES, MEASURING_BYTES):  # the first make the connection, and TCP's window
            request = kvsync_pb2.MeasureRequest(bytes=size)
            got, started, ended = 0, time.monotonic(), 0.0
            async with contextlib.aclosing(peer.stream(peer.bulk.Measure, request, MEASURING_S + 1.0)) as parts:
                async for part in parts:
                    got += len(part.data)
                    ended = time.monotonic() - started
                    if ended > MEASURING_S or got > size:
                        break
            if size == MEASURING_BYTES or ended > MEASURING_S:
                self._measured.moved(peer.id, got, ended)
                return

    # ---- being called ----

    async def measuring(self, size: int) -> AsyncGenerator[kvsync_pb2.MeasureResponse, None]:
        """KVSync.Measure."""
        left = min(size, MOST_MEASURING_BYTES)
        noise = os.urandom(min(left, CHUNK_BYTES))  # what compresses would tell of the compression
        while left > 0:
            part = noise[: min(left, PACED_CHUNK_BYTES if self._pace.is_on else CHUNK_BYTES // 4)]
            await self._pace.take(len(part))
            left -= len(part)
            yield kvsync_pb2.MeasureResponse(data=part)

    async def offered(self, data: bytes) -> kvsync_pb2.OfferResponse:
        """KVSync.Offer."""
        try:
            head = self._snapshots.check(data)
            self._check_wanted(head)
        except ConclaveError as e:
            return kvsync_pb2.OfferResponse(reason=getattr(e, "reason", "") or "other")
        mine = await self._snapshots.header(head.topic)
        held = wire.held_pb(mine.version) if mine is not None else None
        return kvsync_pb2.OfferResponse(held=held, missing=[b.key for b in self._snapshots.missing(head)])

    async def pushed(self, parts: AsyncIterator[kvsync_pb2.PushRequest], caller: str) -> kvsync_pb2.PushResponse:
        """KVSync.Push, of a node."""
        if self._incoming >= MAX_INCOMING:
            return kvsync_pb2.PushResponse(reason="busy")
        self._incoming += 1
        try:
            return await self._pushed(parts, caller)
        finally:
            self._incoming -= 1

    async def _pushed(self, parts: AsyncIterator[kvsync_pb2.PushRequest], caller: str) -> kvsync_pb2.PushResponse:
        receiver = Receiver(self._snapshots, self._snapshots.put)
        head: Header | None = None
        reason = ""
        try:
            async for part in _in_time(parts, PART_S):
                if part.HasField("header"):
                    head = receiver.begin(part.header)
                    self._check_wanted(head)
                else:
                    await receiver.feed(part.chunk)
            await self._snapshots.save(await receiver.finish())
            metrics.SYNC_BYTES.labels("received", "snapshot").inc(receiver.bytes)
            if head is not None and receiver.bytes:
                self._travels.received(caller, head.topic, receiver.bytes, len(head.tokens))
        except TimeoutError:
            reason = Reason.SLOW.value
            count(refuse(Reason.SLOW, "nothing of it came for too long"))
        except ConclaveError as e:
            reason = getattr(e, "reason", "") or "other"
            log.info("a push was refused: %s", e)
        except OSError as e:
            reason = "disk"
            self._snapshots.failed(e)
        finally:
            await receiver.break_off()
        mine = await self._snapshots.header(head.topic) if head is not None else None
        return kvsync_pb2.PushResponse(
            accepted=not reason, held=wire.held_pb(mine.version) if mine is not None else None, reason=reason
        )

    async def pulled(
        self, head: Header, held: Collection[bytes], caller: str
    ) -> AsyncGenerator[kvsync_pb2.PullResponse, None]:
        """The snapshot part of KVSync.Pull, for a node that holds some blocks."""
        packed = head.pack()
        yield kvsync_pb2.PullResponse(header=packed)
        sent = len(packed)
        try:
            async for each, offset, data, last in self._chunks(b for b in head.blocks if b.key not in held):
                sent += len(data)
                part = kvsync_pb2.PullResponse()
                _fill(part.chunk, each.key, offset, data, last)
                yield part
            self._travels.sent(caller, head.topic, sent, len(head.tokens))
        finally:
            metrics.SYNC_BYTES.labels("sent", "snapshot").inc(sent)

    def _check_wanted(self, head: Header) -> None:
        """A snapshot of an older version than ours, or of a topic that is not here, is not wanted."""
        version = self._store.version(head.topic)
        if version == Version() or self._store.log(head.topic).is_forgotten:
            raise count(refuse(Reason.UNWANTED, "its topic is not held here"))
        stored = self._snapshots.blocks.version(head.topic)
        if stored is not None and stored > head.version:
            raise count(refuse(Reason.STALE, "a newer snapshot is held here"))


def _fill(chunk: kvsync_pb2.BlockChunk, key: bytes, offset: int, data: bytes, last: bool) -> None:
    """Set a chunk where it stands: one that is made first and put into its message then is copied once more."""
    chunk.key, chunk.offset, chunk.data, chunk.last = key, offset, data, last


async def _in_time(parts: AsyncIterator[T], within_s: float) -> AsyncIterator[T]:
    """The parts of a transfer. Raises TimeoutError where one does not come in time.

    The time is waited for in halves: where this process stood still itself, the first is over at once, and what has
    come meanwhile is seen in the second.
    """
    while True:
        coming = asyncio.ensure_future(_next(parts))
        try:
            for _ in range(2):
                await asyncio.wait([coming], timeout=within_s / 2)
            if not coming.done():
                raise TimeoutError
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
        part = coming.result()
        if part is None:
            return
        yield part


async def _next(parts: AsyncIterator[T]) -> T | None:
    return await anext(parts, None)


def _unexpected(each: Block, data: bytes) -> None:
    raise count(refuse(Reason.UNWANTED, "it sends blocks before its header"))


class _Sent:
    """Bytes that a stream has sent."""

    def __init__(self) -> None:
        self.bytes = 0
