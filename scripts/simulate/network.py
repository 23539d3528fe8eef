"""Nodes that probe, help and gossip as `node.mesh` does, in simulated time, over a network that loses messages."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

from node.core.members import Alive, Change, Event, Failed, Kind, Members, Settings, Tick
from node.types import NodeInfo, NodeState

TICK_S = 0.1
ONE_WAY_S = (0.001, 0.01)  # A home's wireless network; timeouts are 50 times that.


class Network:
    """`n` nodes that know each other. A message is lost with probability `loss`, each way on its own."""

    def __init__(self, n: int, seed: int, loss: float = 0.0, settings: Settings | None = None) -> None:
        self.rng = Random(seed)
        self.loss = loss
        self.now = 0.0
        self.sent = 0  # Messages, requests and answers each as one.
        self.silent: set[int] = set()  # Dead or unplugged: nothing comes in or out.
        self.sides: dict[int, int] = {}
        self.died: list[tuple[float, int, str]] = []  # When, who said so, of whom.
        self.suspected = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.nodes = [Members(str(i), Random(seed * 1000 + i), settings) for i in range(n)]
        everyone = [NodeInfo(id=str(i), address="127.0.0.1:1") for i in range(n)]
        for i, members in enumerate(self.nodes):
            for info in everyone:
                if info.id != members.id:
                    members.apply(Alive(info, direct=True), 0.0)
            members._rumours.clear()  # That all know each other is not news.
            self.at(self.rng.uniform(0, 1.0), lambda i=i: self.tick(i))  # type: ignore[misc]

    def at(self, delay: float, act: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        heapq.heappush(self._queue, (self.now + delay, next(self._count), act))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = until

    def detection(self, at: float, within: float = 60.0) -> tuple[float, float]:
        """Node 0 falls silent (no FIN, no refusal): seconds until the first, and until all others hold it for dead."""
        self.run(at)
        self.silent.add(0)
        found: dict[int, float] = {}
        while len(found) < len(self.nodes) - 1:
            assert self.now < at + within, f"{len(found)} of {len(self.nodes) - 1} noticed within {within:g} s"
            self.run(self.now + 0.5)
            found = {i: t for t, i, id in self.died if id == "0"}
        return min(found.values()) - at, max(found.values()) - at

    # ---- what nodes do ----

    def passes(self, a: int, b: int) -> bool:
        """Send one message; whether it arrives."""
        self.sent += 1
        cut = a in self.silent or b in self.silent or self.sides.get(a, 0) != self.sides.get(b, 0)
        return not cut and self.rng.random() >= self.loss

    def apply(self, i: int, event: Event) -> None:
        """An event at a node."""
        self.note(self.nodes[i].apply(event, self.now), i)

    def note(self, changes: list[Change], i: int) -> None:
        """Keep what the figures need of changes at a node."""
        self.died += [(self.now, i, c.info.id) for c in changes if c.kind is Kind.DIED]
        self.suspected += sum(c.kind is Kind.SUSPECTED for c in changes)

    def tick(self, i: int) -> None:
        """A node does what is due."""
        self.at(TICK_S, lambda: self.tick(i))
        if i in self.silent:
            return
        self.apply(i, Tick())
        due = self.nodes[i].due(self.now)
        for id in due.probe:
            self.probe(i, int(id))
        for id in (*due.gossip, *due.reconnect):
            self.exchange(i, int(id))

    def exchange(self, a: int, b: int) -> bool:
        """A request and its answer: whether it came back."""
        me = NodeInfo(id=str(a), address="127.0.0.1:1", incarnation=self.nodes[a].incarnation)
        news = self.nodes[a].news(str(b))
        if not self.passes(a, b):
            return False
        self.apply(b, Alive(me, direct=True))
        self.note(self.nodes[b].hear(news, str(a), self.now), b)
        answer = self.nodes[b].news(str(a))
        other = NodeInfo(id=str(b), address="127.0.0.1:1", incarnation=self.nodes[b].incarnation)
        if not self.passes(b, a):
            return False

        def arrives() -> None:
            self.apply(a, Alive(other, direct=True))
            self.note(self.nodes[a].hear([n for n in answer if n.id != str(a)], str(b), self.now), a)

        self.at(self.rng.uniform(*ONE_WAY_S) + self.rng.uniform(*ONE_WAY_S), arrives)
        return True

    def probe(self, a: int, b: int) -> None:
        """One probe, and what follows when it fails."""
        if not self.exchange(a, b):
            self.at(self.nodes[a].settings.timeout_s, lambda: self.indirect(a, b))

    def indirect(self, a: int, b: int) -> None:
        """Two helpers are asked; a suspect that nobody reaches has failed."""
        if a in self.silent:
            return
        held = self.nodes[a].get(str(b))
        # Of a suspect others have found already that no other path leads to it.
        suspected = held is not None and held.state is NodeState.SUSPECT
        helpers = [] if suspected else [int(h) for h in self.nodes[a].helpers(str(b))]
        answered = False
        for h in helpers:
            if self.exchange(a, h):
                reached = self.exchange(h, b)
                answered = answered or reached
                if not reached:
                    self.nodes[h].check(str(b))
        if not answered:
            self.at(self.nodes[a].settings.timeout_s if helpers else 0.0, lambda: self.apply(a, Failed(str(b))))
