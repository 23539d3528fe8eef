"""KV snapshots on this node: taken from the engine, kept on disk, checked, and given back to the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from node import metrics
from node.core import blob, block, snapshot
from node.core.block import Codec
from node.core.refusal import Reason, refuse
from node.core.slots import common_prefix
from node.core.snapshot import Block, Header, Ours
from node.engine.face import EngineFace
from node.errors import ConclaveError, CorruptSnapshot, IncompatibleSnapshot
from node.replicator.incoming import Incoming
from node.replicator.rates import Measured
from node.store import Blocks, Store

log = logging.getLogger(__name__)

# Bytes of the rows of a block that tell how well they compress.
SAMPLED_BYTES = 256 << 10
# Topics whose KV a broken disk did not take that are remembered: more than an engine holds.
MOST_UNTAKEN = 4096

Fetch = Callable[[int, float], Awaitable[Incoming | None]]


class Snapshots:
    """Snapshots between engine and disk. `codec` None: compress where the slowest link makes it worth it."""

    def __init__(
        self,
        engine: EngineFace,
        store: Store,
        blocks: Blocks,
        measured: Measured,
        codec: Codec | None = None,
        secret: bytes = block.NO_SECRET,
    ) -> None:
        self._engine = engine
        self._store = store
        self._blocks = blocks
        self._measured = measured
        self._codec = codec
        self._refuted = 0
        self._untaken: set[str] = set()  # topics whose KV the disk did not take
        self.ours = _ours(engine, secret) if blocks.is_on else None

    @property
    def blocks(self) -> Blocks:
        """What is on disk."""
        return self._blocks

    async def header(self, topic: str) -> Header | None:
        """The header of a topic's snapshot on our disk; one that does not fit our model, or is damaged, is dropped."""
        return await asyncio.to_thread(self._header, topic)

    def _header(self, topic: str) -> Header | None:
        data = self._blocks.header(topic) if self.ours is not None else None
        if data is None or self.ours is None:
            return None
        try:
            return snapshot.check(data, self.ours)
        except IncompatibleSnapshot:
            return None  # of a model that was served from here before, and may be again
        except CorruptSnapshot as e:
            count(e)
            self._blocks.forget(topic)
            return None

    # ---- from the engine to the disk ----

    async def take(self, topic: str) -> Header | None:
        """Bring the snapshot on disk up to what the engine holds of a topic; None if there is nothing to take. Only
        what is new is exported, encoded and written."""
        if self.ours is None:
            return None
        before = await self.header(topic)
        tokens, _ = await self._engine.held(topic)
        if not tokens or self._store.log(topic).is_forgotten:
            return None
        start = 0 if self.ours.layout.window else self._first_new(topic, tokens, before)
        if start >= len(tokens) and before is not None and before.tokens == tuple(tokens):
            return before
        got = await self._engine.export(topic, min(start, len(tokens) - 1))
        if got is None:
            return None
        version = self._store.version(topic)
        try:
            head = await asyncio.to_thread(self._keep, topic, version, *got, before)
            return head if await self._is_wanted(topic) else None
        except (
            ValueError,
            CorruptSnapshot,
        ) as e:  # the topic went on meanwhile, or it is larger than the disk's budget
            log.info("no snapshot of a topic was taken: %s", e)
        except OSError as e:
            self.failed(e, topic)
        return None

    def _first_new(self, topic: str, tokens: Sequence[int], before: Header | None) -> int:
        assert self.ours is not None
        head = snapshot.header(topic, self._store.version(topic), tokens, self.ours, before)
        return next((b.first for b in head.blocks if not self._blocks.has(b.key)), len(tokens))

    def _keep(self, topic: str, version: Any, tokens: Sequence[int], state: Any, before: Header | None) -> Header:
        assert self.ours is not None
        layout, rows = blob.read(state, self.ours.layout.window)
        if layout != self.ours.layout:
            raise ValueError("the engine's KV has changed its layout")
        head = snapshot.header(topic, version, tokens, self.ours, before)
        known = {b.key: b.digest for b in before.blocks} if before is not None else {}
        held = {}
        for each in head.blocks:
            if self._blocks.has(each.key):
                digest = known.get(each.key) or self._digest(each)
                if digest is not None:
                    held[each.key] = digest
        new = [b for b in head.blocks if b.key not in held]
        width = block.shuffle_width(layout.parts[0])
        codec = self._choose(rows[0], width) if new else Codec.NONE
        head, made = snapshot.encode(head, held, rows, codec, width, self.ours.secret)
        for key, data in made.items():
            self._blocks.put(key, data)
        self._blocks.save(head)
        self._store.kv_problem = ""
        return head

    async def retry(self) -> set[str]:
        """If the disk does not take snapshots, try whether it does by now: then the topics whose KV waits for that."""
        if not self._store.kv_problem:
            return set()
        try:
            await asyncio.to_thread(self._blocks.try_out)
        except OSError as e:
            self.failed(e)
            return set()
        log.warning("KV snapshots are written again")
        self._store.kv_problem = ""
        waiting, self._untaken = self._untaken, set()
        return waiting

    def failed(self, error: OSError, topic: str = "") -> None:
        """The disk does not take snapshots: `status` says so until it does."""
        if topic and len(self._untaken) < MOST_UNTAKEN:
            self._untaken.add(topic)
        if not self._store.kv_problem:
            log.warning("KV snapshots are not written: %s", error.strerror or error)
        self._store.kv_problem = (
            f"KV snapshots cannot be written ({error.strerror or error}): after a restart, or on another node, topics "
            "are computed again"
        )

    def _digest(self, each: Block) -> bytes | None:
        data = self._blocks.get(each.key)
        return block.digest_of(data) if data is not None and len(data) >= block.HEAD_BYTES else None

    def _choose(self, rows: blob.Rows, width: int) -> Codec:
        """Compress or not, by what some rows show and what the slowest link takes (`block.choose`)."""
        if self._codec is not None:
            return self._codec
        most = max(SAMPLED_BYTES // max(sum(p.shape[1] for p in rows.planes), 1), 1)
        sample = rows.cut(max(rows.first, rows.end - most), rows.end)
        started = time.perf_counter()
        packed = block.encode(b"", sample, Codec.LZ4, width)
        took = (time.perf_counter() - started) / sample.nbytes
        worth = block.choose(len(packed) / sample.nbytes, took, self._measured.slowest_link_s)
        return Codec.LZ4 if worth else Codec.NONE

    # ---- from a peer to the disk ----

    def check(self, data: bytes) -> Header:
        """A peer's header, checked. Raises CorruptSnapshot or IncompatibleSnapshot, and counts them."""
        if self.ours is None:
            raise count(refuse(Reason.UNWANTED, "this node keeps no snapshots"))
        try:
            return snapshot.check(data, self.ours)
        except ConclaveError as e:
            raise count(e) from None

    def missing(self, head: Header) -> list[Block]:
        """The blocks of a header that are not on our disk."""
        return snapshot.missing(head, self._blocks.has)

    def put(self, each: Block, data: bytes) -> None:
        """Check a peer's block and keep it; it blocks. Raises CorruptSnapshot, counted, or OSError."""
        assert self.ours is not None
        try:
            snapshot.check_block(each, data, self.ours, digest=each.digest)
        except ConclaveError as e:
            raise count(e) from None
        self._blocks.put(each.key, data)
        self._store.kv_problem = ""

    async def save(self, head: Header) -> None:
        """Keep a checked snapshot whose blocks were put. Raises CorruptSnapshot, OSError."""
        await asyncio.to_thread(self._blocks.save, head)
        await self._is_wanted(head.topic)

    async def _is_wanted(self, topic: str) -> bool:
        """Whether a topic is still held, now that its snapshot was written. If it was forgotten meanwhile, its KV was
        deleted before this came, so it is deleted again."""
        try:
            is_forgotten = self._store.log(topic).is_forgotten
        except ConclaveError:
            return True  # it is not known here, or not now
        if is_forgotten:
            await asyncio.to_thread(self._blocks.forget, topic)
        return not is_forgotten

    def incoming(self, head: Header) -> Incoming:
        """A snapshot that is to be put together."""
        assert self.ours is not None
        return Incoming(head, self.ours, self._blocks)

    # ---- from the disk to the engine ----

    async def adopt(self, topic: str, head: Header) -> bool:
        """Give the engine a snapshot from disk for its next turn. Says whether it was taken."""
        if self.ours is None:
            return False
        started = time.perf_counter()
        try:
            incoming = self.incoming(head)
            await incoming.load(head.blocks)
            state = incoming.state()
        except ConclaveError as e:
            log.info("the snapshot of a topic was dropped: %s", count(e))
            for each in head.blocks:
                if each.part == 0 and not await asyncio.to_thread(self._is_sound, each):
                    self._blocks.drop(each.key)
            self._blocks.forget(topic)
            return False
        self._measured.decoded(state.nbytes, time.perf_counter() - started)
        return await self._engine.adopt(topic, head.tokens, state)

    def count_refuted(self) -> None:
        """Count the states that the engine's probe has refuted since the last time."""
        found = self._engine.refuted
        metrics.SNAPSHOTS_REFUSED.labels(Reason.PROBE.value).inc(found - self._refuted)
        self._refuted = found

    def _is_sound(self, each: Block) -> bool:
        assert self.ours is not None
        data = self._blocks.get(each.key)
        try:
            return data is not None and snapshot.check_block(each, data, self.ours) is not None
        except ConclaveError:
            return False

    async def warm(self, topic: str, prompt: Sequence[int], fetch: Fetch | None = None) -> None:
        """Before a prompt is computed: give the engine the snapshot on disk if that is quicker than prefilling.

        `fetch(tokens that would be prefilled, seconds a token)` may bring a better one from a peer.
        """
        if self.ours is None:
            return
        tokens, speeds = await self._engine.held(topic)
        self._measured.restore_s = speeds.restore_s_per_byte
        have = common_prefix(tuple(tokens), tuple(prompt))
        if have and len(prompt) - have <= snapshot.BLOCK_TOKENS:
            return  # the engine has all but a little, which is computed sooner than looked for
        head = await self.header(topic)
        reach = self._reach(head, prompt)
        rest = len(prompt) - max(have, reach)
        if fetch is not None and rest > snapshot.BLOCK_TOKENS:
            incoming = await fetch(rest, speeds.prefill_s)
            if incoming is not None and self._reach(incoming.head, prompt) > max(have, reach):
                await self._engine.adopt(topic, incoming.head.tokens, incoming.state())
                return
        if head is None or reach <= have:
            return
        if snapshot.is_worth(reach - have, speeds.prefill_s, head.size, 0, self._measured.local()):
            await self.adopt(topic, head)

    def _reach(self, head: Header | None, prompt: Sequence[int]) -> int:
        """How many of a prompt's tokens a snapshot would save."""
        if head is None or self.ours is None:
            return 0
        length = min(common_prefix(head.tokens, tuple(prompt)), len(prompt) - 1)
        window = self.ours.layout.window
        # With a sliding window a state can be rolled back only as far as its window still reaches.
        if window and length < len(head.tokens) and self.ours.layout.window_start(len(head.tokens)) > 0:
            return 0
        return length


def _ours(engine: EngineFace, secret: bytes) -> Ours | None:
    """What snapshots must fit; None where the backend's KV is not of a form that can be sent."""
    info, sample = engine.info, engine.sample
    if not isinstance(sample, np.ndarray):
        return None
    if info.is_recurrent:
        log.info("KV of this model is not replicated: it has recurrent layers, whose state is no row a token")
        return None
    try:
        layout, _ = blob.read(sample, info.window)
    except blob.LayoutUnknown as e:
        log.info("KV of this model is not replicated: %s", e)
        return None
    return Ours(info.fingerprint, layout, info.vocabulary, info.context, secret)


def count(error: ConclaveError) -> ConclaveError:
    """Count a refusal by its reason; returns the error."""
    metrics.SNAPSHOTS_REFUSED.labels(getattr(error, "reason", "") or "other").inc()
    return error
