"""Logs between nodes: to peers before a turn is answered, from peers before one begins, and when nodes meet again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from node import metrics, wire
from node.core import placement
from node.core.log import Entry, Taken
from node.errors import ConclaveError, InvalidRequest, NotFound, PeerUnavailable
from node.mesh.peer import Peer
from node.store import Store
from node.types import Version
from node.v1 import kvsync_pb2, types_pb2

log = logging.getLogger(__name__)

# A turn that no peer has by then is answered all the same, with a warning: a person waits.
ACKNOWLEDGE_S = 0.25
APPEND_S = 5.0
# Asking peers for newer turns delays the first token; who does not answer by then is not waited for.
FRESH_S = 0.25
FETCH_S = 10.0
WITNESSES = 3  # One may just have died, another have come: two nodes have one in common all the same.
MAX_ASKED = 8  # peers that are asked for a topic that is not known here
MAX_TURNS = 100_000  # that one Pull may send
MAX_LISTED = 65_536


class Peers(Protocol):
    """What is needed of the mesh."""

    def peers(self) -> list[Peer]:
        """The peers that are alive."""


class Turns:
    """The logs of this node and their copies elsewhere. `spawn` runs what nobody waits for."""

    def __init__(
        self,
        node_id: str,
        mesh: Peers,
        store: Store,
        fingerprint: str,
        replicas: int,
        waits_for_peer: bool,
        spawn: Callable[[Coroutine[Any, Any, Any] | asyncio.Future[Any]], object],
        on_forgotten: Callable[[str], None],
    ) -> None:
        self._id = node_id
        self._mesh = mesh
        self._store = store
        self._fingerprint = fingerprint
        self._replicas = replicas
        self._waits = waits_for_peer
        self._spawn = spawn
        self._on_forgotten = on_forgotten

    # ---- who ----

    def keepers(self, topic: str, more: int = 0) -> list[Peer]:
        """The peers that keep a topic's turns of ours; `more` of them than that are those that could have been chosen
        by another node."""
        if not self._replicas:
            return []
        by_id = {p.id: p for p in self._mesh.peers()}
        return [by_id[i] for i in self._chosen(topic, self._id, self._replicas + more)]

    def _chosen(self, topic: str, maker: str, count: int) -> list[str]:
        """The nodes that the maker of a topic's turn chooses to keep it; one that is gone had our model, for all we
        know."""
        models = {p.id: p.info.fingerprint for p in self._mesh.peers()} | {self._id: self._fingerprint}
        return placement.keepers(topic, maker, {maker: self._fingerprint} | models, count)

    def holders(self, topic: str) -> list[Peer]:
        """The peers that should have a topic's next turn: its keepers, and whoever is known to hold it, as a node that
        answered a turn of it or kept it while another was away. Else they would stay behind."""
        keepers = self.keepers(topic)
        if not self._replicas:
            return []
        known: set[str] = set()
        with contextlib.suppress(ConclaveError):
            known = {entry.version.node_id for entry in self._store.log(topic).path()[-MAX_ASKED:]}
            known |= set(self._store.replicas(topic))
        known -= {peer.id for peer in keepers}
        return [*keepers, *(peer for peer in self._mesh.peers() if peer.id in known)]

    def witnesses(self, topic: str) -> list[Peer]:
        """The peers that note which requests of a topic were given to whom: the same for every node, whichever model it
        has. Where all have one, they are among those that are asked for newer turns anyway."""
        alive = {p.id: p for p in self._mesh.peers()}
        return [alive[i] for i in placement.replicas(topic, [*alive, self._id], WITNESSES) if i in alive]

    def next_version(self, topic: str) -> Version:
        """The version that a turn made here has. Taking over from a node that is held for dead raises the epoch, so
        that what it may still say alone loses."""
        held = self._store.version(topic)
        is_there = held.node_id in ("", self._id) or any(p.id == held.node_id for p in self._mesh.peers())
        return Version(held.epoch + (not is_there), held.turn + 1, self._id)

    # ---- a turn of ours ----

    async def keep(self, topic: str, entry: Entry) -> tuple[str, ...]:
        """Put a turn on our disk and on peers'; returns when it may be answered, with what a person should know."""
        holders = self.holders(topic)
        local = asyncio.ensure_future(self._store.add(topic, entry))
        sends = [asyncio.ensure_future(self.send(peer, topic, entry)) for peer in holders]
        warnings: list[str] = []
        try:
            is_elsewhere = bool(sends) and self._waits and await _first_true(sends, ACKNOWLEDGE_S)
        finally:  # who asked may have left
            for send in sends:
                self._spawn(send)
        if sends and self._waits and not is_elsewhere:
            warnings.append(
                f"durability: no peer had this turn within {ACKNOWLEDGE_S * 1000:.0f} ms, so it is on this node alone"
            )
        await local
        if self._store.problem:
            where = "; this one is on another node's disk" if is_elsewhere else ""
            warnings.append(f"durability: {self._store.problem}{where}")
        return tuple(warnings)

    async def send(self, peer: Peer, topic: str, entry: Entry) -> bool:
        """Give a peer a turn, and what it lacks before it. Says whether the peer's disk has it."""
        try:
            answer = await self._append(peer, topic, entry)
            if answer.orphan:
                for each in self._lacking(topic, wire.version(answer.held), entry):
                    answer = await self._append(peer, topic, each)
        except ConclaveError as e:
            log.info("node %s did not take turn %s of a topic: %s", peer.id, entry.version.turn, e)
            return False
        held, ours = wire.version(answer.held), self._store.version(topic)
        if answer.stored:
            self._store.add_replica(topic, entry.version, peer.id)
            if held < ours:
                # The next turn came while this one was on its way, from a node that could not know who has it.
                self._spawn(self._send_later(peer, topic, ours))
        if held > entry.version:
            self._spawn(self._fetch_later(peer, topic))
        return bool(answer.stored)

    async def _send_later(self, peer: Peer, topic: str, version: Version) -> None:
        if (head := self._store.log(topic).get(version)) is not None:
            await self.send(peer, topic, head)

    def _lacking(self, topic: str, held: Version, last: Entry) -> list[Entry]:
        entries = self._store.log(topic).path(last.version)
        at = next((i + 1 for i, e in enumerate(entries) if e.version == held), 0)
        if not at:
            at = max((i for i, e in enumerate(entries) if e.begins), default=0)
        return entries[at:]

    async def _append(self, peer: Peer, topic: str, entry: Entry) -> kvsync_pb2.AppendResponse:
        request = wire.entry_pb(topic, entry)
        metrics.SYNC_BYTES.labels("sent", "log").inc(request.ByteSize())
        return await peer.call(peer.kvsync.Append, request, APPEND_S)

    # ---- a turn of a peer's ----

    async def take(self, topic: str, entry: Entry) -> tuple[Taken, bool, Version]:
        """KVSync.Append: what became of an entry, whether it is on our disk, and the version held."""
        had = self._store.replicas(topic)
        kept = await self._store.add(topic, entry)
        if kept.taken is Taken.HEAD:
            self._store.add_replica(topic, entry.version, entry.version.node_id)
            if entry.forgotten:
                self._on_forgotten(topic)
            else:
                self._pass_on(topic, entry, had)
        return kept.taken, kept.on_disk, self._store.version(topic)

    def _pass_on(self, topic: str, entry: Entry, had: Sequence[str]) -> None:
        """Who had the turn before without being a keeper now (it stood in for one that was away), or made one that is a
        branch by now, is not known to the maker of this one. We know of it and tell it, or it would stay behind."""
        held = self._store.log(topic)
        makers = {e.version.node_id for e in held.path()[-MAX_ASKED:]}
        told = {self._id, *makers, *self._chosen(topic, entry.version.node_id, self._replicas)}
        behind = {*had, *(version.node_id for version in held.branches())} - told
        for peer in self._mesh.peers() if behind else ():
            if peer.id in behind:
                self._spawn(self.send(peer, topic, entry))

    # ---- newer turns from peers ----

    async def freshen(self, topic: str, expected: Version, request_id: str = "") -> set[str]:
        """Before a turn: learn of turns that other nodes made, as far as they answer soon; longer where ours are known
        to be too few, as the client `expected` a later one. Answers which nodes were given the request too."""
        known = self._store.version(topic) != Version() and self._store.version(topic) >= expected
        peers = self.keepers(topic, more=1)
        if not known:
            others = [p for p in self._mesh.peers() if p.id not in {q.id for q in peers}]
            peers = [*peers, *others[: max(MAX_ASKED - len(peers), 0)]]
        if request_id:
            asked = {p.id for p in peers}
            peers = [*peers, *(p for p in self.witnesses(topic) if p.id not in asked)]
        return await self.fetch_soon(topic, peers, request_id, is_known=known)

    async def fetch_soon(
        self, topic: str, peers: Sequence[Peer], request_id: str = "", *, is_known: bool = True
    ) -> set[str]:
        """Take from peers the turns that we lack, as far as they come in time (which is longer where the topic is not
        known here); the others as they come. Answers which nodes were given the request too."""
        given: set[str] = set()
        if not peers:
            return given
        tasks = [asyncio.ensure_future(self.fetch(peer, topic, request_id, given)) for peer in peers]
        try:
            await asyncio.wait(tasks, timeout=FRESH_S if is_known else FETCH_S)
        finally:  # who asked may have left; what comes is taken all the same
            for task in tasks:
                self._spawn(task)
        return set(given)

    async def fetch(self, peer: Peer, topic: str, request_id: str = "", given: set[str] | None = None) -> bool:
        """Take from a peer the turns that it has and we lack. Says whether our head changed. Raises ConclaveError.

        With `request_id` the peer notes that we were given it, and who else was is added to `given`.
        """
        before, newest = self._store.version(topic), Version()
        request = kvsync_pb2.PullRequest(topic=topic, version=wire.held_pb(before), request_id=request_id)
        count = 0
        async with contextlib.aclosing(peer.stream(peer.kvsync.Pull, request, FETCH_S)) as parts:
            async for part in parts:
                count += 1
                if given is not None and part.HasField("given"):
                    given.update(part.given.nodes[:MAX_ASKED])
                    continue
                if not part.HasField("turn") or count > MAX_TURNS:
                    raise InvalidRequest(f"node {peer.id} sent something else than turns, or too many")
                name, entry = wire.entry(part.turn)
                if name != topic:
                    raise InvalidRequest(f"node {peer.id} sent a turn of another topic")
                metrics.SYNC_BYTES.labels("received", "log").inc(part.ByteSize())
                await self.take(topic, entry)
                newest = max(newest, entry.version)
        now = self._store.version(topic)
        self._store.add_replica(topic, newest, peer.id)
        if now != before and before != Version():
            await self._tell_of_branch(peer, topic, before)
        return now != before

    async def _tell_of_branch(self, peer: Peer, topic: str, lost: Version) -> None:
        """What we said alone lost against what the peer said alone: it keeps ours as a branch, as we do."""
        held = self._store.log(topic)
        if lost not in held.branches():
            return
        for entry in held.path(lost):
            await self._append(peer, topic, entry)

    async def _fetch_later(self, peer: Peer, topic: str) -> None:
        with contextlib.suppress(ConclaveError):
            await self.fetch(peer, topic)

    # ---- when nodes meet ----

    async def reconcile(self, peer: Peer) -> int:
        """Compare a peer's list with ours: take what is newer there, of topics that we hold or should, and give what is
        newer here, of topics that the peer holds. Answers how many of ours changed. Raises ConclaveError."""
        listed = await peer.call(peer.kvsync.List, kvsync_pb2.ListRequest(), FETCH_S)
        if len(listed.topics) > MAX_LISTED:
            raise InvalidRequest(f"node {peer.id} lists {len(listed.topics)} topics")
        changed = 0
        for info in listed.topics:
            try:
                changed += await self._level(peer, info)
            except PeerUnavailable:
                raise
            except ConclaveError as e:  # of this topic, such as a log that the disk does not give
                log.info("a topic was not compared with node %s: %s", peer.id, e)
        return changed

    async def _level(self, peer: Peer, info: types_pb2.TopicInfo) -> bool:
        """One topic of a peer's list; says whether ours changed."""
        topic, version = wire.name("topic", info.topic), wire.version(info.version)
        ours = self._store.version(topic)
        if version == ours:
            self._store.add_replica(topic, version, peer.id)
        elif version > ours and (ours != Version() or info.forgotten or self._should_keep(topic, version, peer)):
            if not info.forgotten:
                return await self.fetch(peer, topic)
            if ours != Version():
                await self.take(topic, Entry(version, forgotten=True))
                return True
        elif version < ours and (head := self._store.log(topic).get(ours)) is not None:
            await self.send(peer, topic, head)
        return False

    def _should_keep(self, topic: str, version: Version, holder: Peer) -> bool:
        """Whether a topic that is not here should be: who made its last turn chooses us, or where that one is gone, the
        peer that holds it."""
        maker = version.node_id if any(p.id == version.node_id for p in self._mesh.peers()) else holder.id
        return self._id in self._chosen(topic, maker, self._replicas)

    # ---- forgetting ----

    async def forget(self, topic: str) -> tuple[Version, list[str]]:
        """Let a topic go here and on all nodes that are alive: the tombstone's version, and who has it. Raises
        NotFound."""
        held = self._store.log(topic)
        if held.is_forgotten:
            raise NotFound(f"topic {topic!r} was forgotten already")
        entry = Entry(self.next_version(topic), forgotten=True)
        await self._store.add(topic, entry)
        self._on_forgotten(topic)
        peers = self._mesh.peers()
        done = await asyncio.gather(*(self._forget_at(peer, topic, entry) for peer in peers))
        return entry.version, [peer.id for peer, took in zip(peers, done, strict=True) if took]

    async def _forget_at(self, peer: Peer, topic: str, entry: Entry) -> bool:
        try:
            return wire.version((await self._append(peer, topic, entry)).held) == entry.version
        except (ConclaveError, PeerUnavailable):
            return False


async def _first_true(tasks: Sequence[asyncio.Future[bool]], timeout_s: float) -> bool:
    """Whether one of the tasks says yes in time; returns as soon as one does."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(
            waiting, timeout=max(until - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED
        )
        if any(task.result() for task in done):
            return True
        if not done:
            return False
    return False
