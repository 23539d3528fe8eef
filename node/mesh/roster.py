"""What one node holds of the mesh: the members, a connection to each that is met, and who wants to know of changes."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from node import wire
from node.address import is_address
from node.core.members import Alive, Change, Dead, Failed, Kind, Members, Settings, Tick
from node.errors import Unauthenticated
from node.mesh.identity import NODE_ID, Identity
from node.mesh.notices import Notices
from node.mesh.peer import Peer
from node.types import NodeInfo, NodeState
from node.v1 import mesh_pb2, types_pb2

PROTOCOL = 1
MAX_NEWS = 256  # Entries of one message that are looked at.
DRAINED_S = 2.0  # as long as a node that stops takes for what runs on it
AFTER_DEFECT_S = 1.0  # so that one which comes each time fills no log
UNREACHED_S = 5.0  # So long nobody may have called us, while answers say that we are dead.

_log = logging.getLogger(__name__)


class Roster:
    """Members and peers, kept in step, and the tasks that work on them. `strangers` is told of nodes to be met."""

    def __init__(
        self,
        identity: Identity,
        self_info: Callable[[], NodeInfo],
        settings: Settings | None,
        notice: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self.identity = identity
        self.id = identity.node_id
        self.rng = rng
        # Milliseconds of wall clock: higher at each start, so whatever is still said of our former life is old news.
        self.members = Members(self.id, rng, settings, incarnation=int(time.time() * 1000))
        self.timeout_s = self.members.settings.timeout_s
        self.peers: dict[str, Peer] = {}
        self.callbacks: list[Callable[[Change], None]] = []
        self.strangers: Callable[[NodeInfo], object] = lambda _: None
        self.wake = asyncio.Event()
        self.stopping = False
        self._self_info = self_info
        self._notice = notice
        self._unreached_since = math.inf
        self._notices = Notices()
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- this node ----

    def info(self) -> NodeInfo:
        """This node as it is now."""
        return replace(self._self_info(), id=self.id, incarnation=self.members.incarnation)

    def me(self) -> types_pb2.NodeInfo:
        """The same for the wire."""
        return wire.node_info_pb(self.info())

    # ---- the others ----

    def is_alive(self, id: str) -> bool:
        """Whether a node is held for alive, and not suspected."""
        held = self.members.get(id)
        return held is not None and held.state not in (NodeState.SUSPECT, NodeState.DEAD)

    def is_met(self, id: str) -> bool:
        """Whether a node is held for alive and we have a connection to it: others may have told us that it is back."""
        return id in self.peers and self.is_alive(id)

    def suspect(self, id: str) -> None:
        """Something spoke against a peer: it is probed at once."""
        self.members.check(id)
        self.wake.set()

    def freed(self, id: str, sequences: int) -> None:
        """A peer said how many sequences it has free. Its last probe may have found it at work on what is over now."""
        self.members.freed(id, sequences)

    def news(self, to: str) -> list[types_pb2.NodeInfo]:
        """What to tell a node with the next message."""
        return [wire.node_info_pb(i) for i in self.members.news(to)]

    def probe_request(self, to: str) -> mesh_pb2.ProbeRequest:
        """A probe, with news on its back."""
        return mesh_pb2.ProbeRequest(node=self.me(), news=self.news(to))

    def apply(self, event: Alive | Dead | Failed | Tick) -> None:
        """Takes an event in, and acts on what it changes."""
        for change in self.members.apply(event, time.monotonic()):
            self.changed(change)

    def answered(self, id: str, answer: mesh_pb2.ProbeResponse) -> None:
        """A node answered a probe of ours."""
        info = checked(answer.node)
        if info is not None and info.id == id:
            self.apply(Alive(info, direct=True))
        self.hear(answer.news, id)

    def hear(self, pbs: Iterable[types_pb2.NodeInfo], by: str, *, inbound: bool = False) -> None:
        """News from `by`, in an answer to us or `inbound`, through our listener."""
        news = [i for pb in list(pbs)[:MAX_NEWS] if (i := checked(pb)) is not None]
        if inbound:
            self._unreached_since = math.inf
            self.unsay("unreached")
        else:
            # A suspicion of ourselves is refuted only where it came in through our listener, for that is what is
            # suspected. Else a node behind a firewall would refute for ever what is true.
            if any(i.id == self.id and i.state is NodeState.DEAD for i in news):
                self._told_dead(by)
            news = [i for i in news if i.id != self.id]
        for change in self.members.hear(news, by, time.monotonic()):
            self.changed(change)
        for info in self.members.strangers(news):
            self.strangers(info)

    def _told_dead(self, by: str) -> None:
        # After a sleep everybody is told so until the first call comes in; behind a firewall none ever does.
        now = time.monotonic()
        self._unreached_since = min(self._unreached_since, now)
        if now - self._unreached_since >= UNREACHED_S:
            self.say(
                f"others, such as node {by}, cannot reach this node at {self.info().address}: "
                "open that port in the firewall",
                key="unreached",
            )

    def changed(self, change: Change) -> None:
        """Acts on a change: a dead node's connection is closed, callbacks are called."""
        id = change.info.id
        if change.kind in (Kind.DIED, Kind.LEFT) and id in self.peers:
            # Who says goodbye still finishes what it was asked for.
            self.spawn(self.peers.pop(id).close(DRAINED_S if change.kind is Kind.LEFT else None))
        if change.kind is Kind.JOINED and id not in self.peers:
            self.strangers(change.info)  # It is back, others say: only who is called can be probed.
        if change.kind is Kind.UPDATED and id in self.peers and self.peers[id].address != change.info.address:
            self.strangers(change.info)  # It moved.
        if change.kind is not Kind.UPDATED:
            self.wake.set()  # It is told at once.
            _log.info("node %s: %s", id, change.kind)
        for callback in self.callbacks:
            try:
                callback(change)
            except Exception:
                _log.exception("a callback failed on %s", change.kind)

    # ---- people and tasks ----

    def say(self, line: str, key: str = "", lasts_s: float = math.inf) -> None:
        """Tells a person one line, once, and keeps it: until another is said about `key`, or that is unsaid, or for so
        long since it was said last."""
        if self._notices.say(line, time.monotonic(), key, lasts_s):
            _log.warning("%s", line)
            self._notice(line)

    def unsay(self, *keys: str) -> None:
        """What was said about these is no longer true."""
        for key in keys:
            self._notices.withdraw(key)

    def notices(self) -> list[str]:
        """What was said and is true now, the oldest first."""
        return self._notices.lines(time.monotonic())

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a task that ends with the roster at the latest; its failure is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def keep_on(self, round: Callable[[], Awaitable[None]], what: str) -> None:
        """Does rounds of what must not end until cancelled. A defect costs its round, not all that come after: a node
        that no longer probes would hold the dead for alive."""
        while True:
            try:
                await round()
            except Exception:
                _log.exception("%s failed, and go on", what)
                await asyncio.sleep(AFTER_DEFECT_S)

    async def close(self) -> None:
        """Cancels all tasks and closes all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(p.close() for p in self.peers.values()), return_exceptions=True)
        self.peers.clear()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the mesh failed", exc_info=task.exception())


def caller(pb: types_pb2.NodeInfo, peer_identity: str) -> NodeInfo:
    """Who calls, as it says. Raises Unauthenticated if its certificate says otherwise."""
    info = checked(pb)
    if info is None or info.id != peer_identity:
        raise Unauthenticated(f"the caller says it is node {pb.id[:64]!r}, its certificate says {peer_identity!r}")
    return info


def checked(pb: types_pb2.NodeInfo) -> NodeInfo | None:
    """What a peer says of a node, bounded and safe to show; None if it cannot be of one."""
    info = wire.node_info(pb)
    return info if NODE_ID.fullmatch(info.id) and is_address(info.address) else None
