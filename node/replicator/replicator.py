"""Replication for the coordinator and the listeners: logs at once, KV when a topic rests for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from node import metrics, wire
from node.core.block import NO_SECRET, Codec
from node.core.log import Entry, Taken
from node.core.members import Change, Kind
from node.core.snapshot import Header
from node.engine.face import EngineFace
from node.errors import ConclaveError, NotFound
from node.mesh.peer import Peer
from node.replicator.links import Links
from node.replicator.pulls import Pulls
from node.replicator.rates import Measured, Pace
from node.replicator.snapshots import Snapshots
from node.replicator.transfer import Transfer
from node.replicator.travels import Travels
from node.replicator.turns import Peers, Turns
from node.store import Blocks, Store
from node.types import Message, TopicInfo, Version
from node.v1 import kvsync_pb2

log = logging.getLogger(__name__)

# KV is taken when a topic has rested so long: the next turn of a quick typist would take it away from under us.
DEBOUNCE_S = 0.3
# A snapshot that did not reach a peer is offered again after so long, then after twice as long, and so on: the peer
# stood still for a moment, or its disk was full. In the end the topic's next turn does it, or the peer's return.
AGAIN_S = 5.0
AGAIN = 4
# Pushes at a time, over all topics: they are in the background, and two fill a link.
MAX_PUSHES = 2
# Changes of the membership within this time are one.
COMPARE_S = 0.2
# Every so often one peer's list is compared even if nothing seems to have happened.
RECONCILE_S = 30.0
# A disk that took nothing is tried so often, until it does.
DISK_S = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a node replicates: other nodes that keep a topic; whether a turn waits for one of them; Mbit/s for KV (0: no
    cap); how KV is compressed (None: as measured)."""

    replicas: int = 2
    waits_for_peer: bool = True
    mbps: int = 0
    codec: Codec | None = None
    secret: bytes = NO_SECRET  # that the mesh's checksums of KV are made with


class Replicator:
    """Keeps this node's topics elsewhere, and others' topics here. Use it from one event loop."""

    def __init__(
        self,
        node_id: str,
        engine: EngineFace,
        mesh: Peers,
        store: Store,
        blocks: Blocks,
        options: Options | None = None,
    ) -> None:
        options = options or Options()
        self._engine = engine
        self._mesh = mesh
        self._store = store
        self._measured = Measured(options.mbps)
        self.snapshots = Snapshots(engine, store, blocks, self._measured, options.codec, options.secret)
        self.travels = Travels(node_id)
        self._transfer = Transfer(self.snapshots, store, self._measured, Pace(options.mbps), self.travels)
        self.turns = Turns(
            node_id,
            mesh,
            store,
            engine.info.fingerprint,
            options.replicas,
            options.waits_for_peer,
            self._spawn,
            self._forgotten,
        )
        self._id = node_id
        self._tasks: set[asyncio.Future[Any]] = set()
        self._waiting: dict[str, asyncio.Event] = {}  # topic -> it changed again
        self._pushes = asyncio.Semaphore(MAX_PUSHES)
        self._links = Links(engine, mesh, self._measured, self._transfer, self._pushes)
        self._pulls = Pulls(
            engine.info.fingerprint,
            mesh,
            store,
            self.snapshots,
            self._transfer,
            self.turns,
            self._links,
            self._measured,
            self._spawn,
        )
        self._unequal = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """Begin to compare lists with peers from time to time, and to try a disk that takes nothing again."""
        self._spawn(self._compare())
        self._spawn(self._reconcile_now_and_then())
        self._spawn(self._try_disk())

    async def stop(self) -> None:
        """End what runs in the background; KV that was not pushed yet is on our disk at best."""
        self._stopping = True
        while self._tasks:  # one that ends may hand over another
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # those that have ended are taken out after this

    # ---- for the coordinator ----

    async def freshen(self, topic: str, expected: Version, request_id: str = "") -> set[str]:
        """Before a turn: learn of turns that other nodes made; the client knows of version `expected`. Answers which
        nodes were given the request too, if it is named."""
        return await self.turns.freshen(topic, expected, request_id)

    async def fetch(self, topic: str, nodes: Collection[str]) -> None:
        """Learn of turns that these nodes made, as far as they answer soon."""
        await self.turns.fetch_soon(topic, [peer for peer in self._mesh.peers() if peer.id in nodes])

    def next_version(self, topic: str) -> Version:
        """The version that a turn made here has."""
        return self.turns.next_version(topic)

    def holders(self, topic: str) -> set[str]:
        """Ids of the peers that get a topic's next turn (`keep`)."""
        return {peer.id for peer in self.turns.holders(topic)}

    async def keep(self, topic: str, entry: Entry) -> tuple[str, ...]:
        """Keep a turn, here and elsewhere; returns when it may be answered, with warnings for a person."""
        return await self.turns.keep(topic, entry)

    async def warm(self, topic: str, prompt: Sequence[int]) -> None:
        """Before a prompt of a topic is computed: bring KV from disk or from a peer if that is quicker."""
        try:
            await self.snapshots.warm(
                topic, prompt, lambda tokens, prefill_s: self._pulls.pull(topic, tokens, prefill_s)
            )
        except (ConclaveError, OSError) as e:
            log.info("a topic's KV was not brought back: %s", e)

    def changed(self, topic: str) -> None:
        """The engine holds new KV for a topic: it is taken and pushed when the topic rests."""
        if self.snapshots.ours is None or self._stopping:
            return
        self.snapshots.count_refuted()
        if (again := self._waiting.get(topic)) is not None:
            again.set()
            return
        self._waiting[topic] = asyncio.Event()
        self._spawn(self._replicate(topic))

    # ---- KV, in the background ----

    async def _replicate(self, topic: str) -> None:
        again = self._waiting[topic]
        tries = 0
        try:
            while True:
                again.clear()
                rest = AGAIN_S * 2 ** (tries - 1) if tries else DEBOUNCE_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await again.wait()
                        tries = 0
                        continue
                all_have_it = await self._push(topic)
                tries = 0 if again.is_set() else tries + 1
                if tries and (all_have_it or tries > AGAIN):
                    return
        finally:
            del self._waiting[topic]

    async def _push(self, topic: str) -> bool:
        """Bring the snapshot on our disk up to date, and those of the topic's keepers. False if one could not be
        reached."""
        try:
            head = await self._snapshot(topic)
        except ConclaveError as e:
            log.info("no snapshot of a topic was taken: %s", e)
            return True
        reached = True
        fingerprint = self._engine.info.fingerprint
        for peer in self.turns.keepers(topic):
            if head is None or peer.info.fingerprint != fingerprint:
                continue
            async with self._pushes:
                try:
                    await self._transfer.push(peer, head)
                except ConclaveError as e:
                    log.info("the snapshot of a topic did not reach node %s: %s", peer.id, e)
                    reached = False
        return reached

    async def _snapshot(self, topic: str) -> Header | None:
        """The snapshot on our disk, up to date."""
        await self._pulls.kept(topic)
        return await self.snapshots.take(topic) or await self.snapshots.header(topic)

    # ---- when nodes meet ----

    def on_change(self, change: Change) -> None:
        """A change of the membership: who comes may have newer turns or lack ours, who goes leaves topics short of a
        keeper, and whoever stood in for one that was away may have been left behind. So all is compared."""
        if change.kind in (Kind.JOINED, Kind.RECOVERED, Kind.DIED, Kind.LEFT):
            self._unequal.set()
        is_of_ours = change.info.fingerprint == self._engine.info.fingerprint and self.snapshots.ours is not None
        if change.kind is Kind.JOINED and is_of_ours:
            self._spawn(self._links.measure(change.info.id))

    async def _compare(self) -> None:
        """After changes of the membership, compare lists with all peers, and offer them the snapshots they should
        keep."""
        while True:
            await self._unequal.wait()
            await asyncio.sleep(COMPARE_S)  # changes come together
            self._unequal.clear()
            peers = self._mesh.peers()
            await asyncio.gather(*(self._reconcile(peer) for peer in peers))
            alive = {p.id for p in peers}
            for topic in self.snapshots.blocks.topics():
                maker = self._store.version(topic).node_id
                if maker == self._id or maker not in alive:
                    self.changed(topic)

    def links(self) -> dict[str, float]:
        """Seconds a byte of the links to other nodes, as far as they were measured."""
        return self._measured.links()

    async def _reconcile(self, peer: Peer) -> None:
        try:
            await self.turns.reconcile(peer)
        except (ConclaveError, ValueError) as e:
            log.info("the topics of node %s were not compared: %s", peer.id, e)
        except Exception:  # a defect of ours must not end all comparing
            log.exception("comparing topics with node %s failed", peer.id)

    async def _reconcile_now_and_then(self) -> None:
        rng = random.Random()
        while True:
            await asyncio.sleep(RECONCILE_S * rng.uniform(0.8, 1.2))
            if peers := self._mesh.peers():
                await self._reconcile(rng.choice(peers))

    async def _try_disk(self) -> None:
        """Nobody need say anything for what waited to be written."""
        while True:
            await asyncio.sleep(DISK_S)
            await self._store.retry()
            for topic in await self.snapshots.retry():
                self.changed(topic)

    def _forgotten(self, topic: str) -> None:
        """A topic was forgotten: its KV goes too."""
        self._spawn(self._drop(topic))

    async def _drop(self, topic: str) -> None:
        await self._pulls.kept(topic)
        await asyncio.to_thread(self.snapshots.blocks.forget, topic)
        with contextlib.suppress(ConclaveError):
            await self._engine.forget(topic)

    # ---- for the listeners ----

    async def append(self, request: kvsync_pb2.AppendRequest) -> kvsync_pb2.AppendResponse:
        """KVSync.Append. Raises InvalidRequest."""
        metrics.SYNC_BYTES.labels("received", "log").inc(request.ByteSize())
        topic, entry = wire.entry(request)
        taken, on_disk, held = await self.turns.take(topic, entry)
        return kvsync_pb2.AppendResponse(
            stored=on_disk and taken not in (Taken.ORPHAN, Taken.STALE),
            held=wire.held_pb(held),
            orphan=taken is Taken.ORPHAN,
        )

    async def offer(self, header: bytes) -> kvsync_pb2.OfferResponse:
        """KVSync.Offer."""
        return await self._transfer.offered(header)

    async def push(self, parts: AsyncIterator[kvsync_pb2.PushRequest], caller: str = "") -> kvsync_pb2.PushResponse:
        """KVSync.Push."""
        return await self._transfer.pushed(parts, caller)

    async def pull(
        self, request: kvsync_pb2.PullRequest, caller: str = ""
    ) -> AsyncGenerator[kvsync_pb2.PullResponse, None]:
        """KVSync.Pull: the turns that the caller lacks, then the snapshot if it is of the caller's model."""
        topic = wire.name("topic", request.topic)
        try:
            held = self._store.log(topic)
        except NotFound:
            return
        theirs = wire.version(request.version) if request.HasField("version") else Version()
        if theirs < held.head:
            for entry in held.after(theirs):
                turn = kvsync_pb2.PullResponse(turn=wire.entry_pb(topic, entry))
                metrics.SYNC_BYTES.labels("sent", "log").inc(turn.ByteSize())
                yield turn
            if caller:  # it need be no keeper in our eyes, but it has them now, and must hear of the next
                self._store.add_replica(topic, held.head, caller)
        ours = self.snapshots.ours
        if not request.fingerprint or ours is None or request.fingerprint != ours.fingerprint:
            return
        head = await self._snapshot(topic)
        if head is not None:
            async with contextlib.aclosing(self._transfer.pulled(head, set(request.held), caller)) as parts:
                async for part in parts:
                    yield part

    async def measure(self, size: int) -> AsyncGenerator[kvsync_pb2.MeasureResponse, None]:
        """KVSync.Measure."""
        async with contextlib.aclosing(self._transfer.measuring(size)) as parts:
            async for part in parts:
                yield part

    def topics(self, *, tombstones: bool) -> list[TopicInfo]:
        """KVSync.List: the topics held; tombstones are for nodes, not for people."""
        return self._store.list(forgotten=tombstones)

    def present(self) -> set[str]:
        """The ids of the nodes that are there: this one and its peers that answer."""
        return {self._id, *(p.id for p in self._mesh.peers())}

    def show(self, topic: str) -> tuple[TopicInfo, tuple[Message, ...], list[tuple[Version, tuple[Message, ...]]], int]:
        """A topic for people: what List says, its conversation, its branches, the tokens of its snapshot. Raises
        NotFound."""
        held = self._store.get(topic)
        logged = self._store.log(topic)
        info = next(t for t in self._store.list() if t.topic == topic)
        branches = [(v, logged.conversation(v)) for v in logged.branches()]
        return info, held.messages, branches, self.snapshots.blocks.tokens(topic)

    async def forget(self, topic: str) -> tuple[Version, list[str]]:
        """KVSync.Forget: the tombstone's version, and the other nodes that have it. Raises NotFound."""
        return await self.turns.forget(topic)

    def _spawn(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> asyncio.Future[Any] | None:
        """Run what nobody waits for, until the end of this node. A future is what somebody waited for until now."""
        if self._stopping and asyncio.iscoroutine(work):
            work.close()
            return None
        task = asyncio.ensure_future(work)
        if self._stopping:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, ConclaveError):
            log.info("in the background: %s", error)
        else:
            log.error("replication failed in the background", exc_info=error)
