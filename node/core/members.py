"""Membership of the mesh: who is alive, suspected or dead, and whom to probe next. Pure: time and randomness come in.

The rules are SWIM's as memberlist has them. A node is known by an id and an incarnation that only it may raise. Alive
needs a higher incarnation to take back a suspicion or a death; a suspicion wins over alive of the same incarnation; a
death wins over both. So a node that is wrongly suspected refutes by raising its incarnation, and news may come in any
order, any number of times.

Two things are our own. A node that hears of a suspicion checks for itself at once, and passes it on only when it
found the same: so each suspicion that arrives is the witness of its sender, and the more independent witnesses, the
sooner the suspect is held for dead (Lifeguard's rule, without a field for who suspected). And dead nodes are called
again, one each second: after a partition the mesh heals by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from node.core.events import Alive, Change, Dead, Due, Event, Failed, Kind, Suspect, Tick
from node.core.round import Round
from node.core.rumours import Rumours
from node.core.table import Table
from node.types import NodeInfo, NodeState

__all__ = [
    "MAX_INCARNATION",
    "Alive",
    "Change",
    "Dead",
    "Event",
    "Failed",
    "Kind",
    "Members",
    "Settings",
    "Suspect",
    "Tick",
]

MAX_INCARNATION = 1 << 62  # Above it nobody could refute any more.
MAX_SUSPECTS = 8  # That many are probed again and again; in a larger collapse the rounds have to do.


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. The values meet one aim: a dead peer is out within 5 s among 8 nodes, a busy one is not."""

    # memberlist's LAN profile says 1 s; simulated, 8 nodes then took 4.9 s (p95) and 6.7 s (worst of 60) to agree that
    # a silent one is dead. With 0.5 s it is 3.3 and 3.4 s, for 16 small messages a second among all eight.
    probe_s: float = 0.5
    timeout_s: float = 0.5  # memberlist's; a node whose cores all compute answered within 60 ms.
    indirect: int = 2  # Two other paths; memberlist's three pays in far larger meshes.
    suspicion_max_s: float = 3.0  # With one witness. memberlist's four would bring two nodes over the 5 s.
    suspicion_min_s: float = 1.0  # With `witnesses`: two gossip rounds and an answer fit in it several times.
    witnesses: int = 3  # Three nodes that could not reach it are hardly all wrong; Lifeguard's k is 3 as well.
    gossip_s: float = 0.2  # memberlist's: news reach 8 nodes in two rounds, 0.4 s.
    fanout: int = 3  # memberlist's.
    retransmit: int = 6  # Times log10(n). memberlist's 4 leaves one in fifty ignorant: e^-4, and it has a full sync.
    news: int = 16  # A message stays under one packet or two.
    reconnect_s: float = 1.0  # Healing must show within 5 s; one attempt a second costs nothing.
    forget_s: float = 24 * 3600.0  # A laptop that was taken along for a day is called again.
    most: int = 1024  # A bound on what peers can make us hold; far above any mesh of one person or lab.


class Members:
    """The membership that one node holds, itself not among `alive`.

    `incarnation` should be higher at each start of the node (Unix milliseconds will do): then its former life, that
    others may hold for dead, is over at once.
    """

    def __init__(self, id: str, rng: Random, settings: Settings | None = None, incarnation: int = 0) -> None:
        self.id = id
        self.incarnation = incarnation
        self.settings = settings or Settings()
        self._rng = rng
        self._members = Table()
        self._round = Round(rng)
        self._checks: set[str] = set()
        self._rumours = Rumours()
        self._next_probe = self._next_gossip = self._next_reconnect = -math.inf

    # ---- what is held ----

    def alive(self) -> list[NodeInfo]:
        """The nodes that are neither suspected nor dead, by id."""
        return [m.info for m in self._members.by_id() if m.state is NodeState.ALIVE]

    def all(self) -> list[NodeInfo]:
        """Every node that is remembered, by id, with its state."""
        return [m.told() for m in self._members.by_id()]

    def get(self, id: str) -> NodeInfo | None:
        """A node that is remembered, with its state."""
        member = self._members.get(id)
        return member.told() if member else None

    def has_left(self, id: str) -> bool:
        """Whether it said goodbye and has not come back."""
        member = self._members.get(id)
        return member is not None and member.left

    # ---- what happens ----

    def apply(self, event: Event, now: float) -> list[Change]:
        """Takes an event in; returns what changed by it."""
        match event:
            case Alive(info, direct):
                return self._alive(info, direct, now)
            case Suspect(id, incarnation, by):
                return self._suspect(id, incarnation, by, now)
            case Dead(id, incarnation, left):
                return self._dead(id, incarnation, left, now)
            case Failed(id):
                member = self._members.get(id)
                return self._suspect(id, member.info.incarnation, self.id, now) if member else []
            case Tick():
                return self._tick(now)

    def hear(self, news: Iterable[NodeInfo], by: str, now: float) -> list[Change]:
        """Takes in what the peer `by` told of others. Alive nodes that are not held yet are for `strangers`."""
        changes: list[Change] = []
        for info in news:
            if info.state is NodeState.SUSPECT:
                changes += self.apply(Suspect(info.id, info.incarnation, by), now)
            elif info.state is NodeState.DEAD:
                changes += self.apply(Dead(info.id, info.incarnation), now)
            elif info.id in self._members or info.id == self.id:
                changes += self.apply(Alive(info), now)
        return changes

    def strangers(self, news: Iterable[NodeInfo]) -> list[NodeInfo]:
        """Nodes of `news` that live, but that are not held at all: to be met before they are believed."""
        gone = (NodeState.SUSPECT, NodeState.DEAD)
        return [i for i in news if i.id != self.id and i.id not in self._members and i.state not in gone]

    def check(self, id: str) -> None:
        """Have `id` probed at the next `due`, whoever's turn it is: there is a reason for doubt."""
        member = self._members.get(id)
        if member is not None and member.state is not NodeState.DEAD:
            self._checks.add(id)

    def freed(self, id: str, sequences: int) -> None:
        """A node that is alive said that it has so many sequences free; that is no news for others."""
        member = self._members.get(id)
        if member is not None and member.state is NodeState.ALIVE and member.info.free_sequences != sequences:
            member.info = replace(member.info, free_sequences=min(sequences, member.info.sequences))

    def renew(self) -> None:
        """We say something new of ourselves that must overtake what others tell of us, such as another address."""
        self.incarnation += 1

    def stalled(self, seconds: float) -> None:
        """This process could not run for so long; suspects are given that time on top, for it proves nothing."""
        for id in self._members.suspects:
            self._members[id].since += seconds

    # ---- what to do ----

    @property
    def is_quiet(self) -> bool:
        """Whether nobody is in doubt and there is nothing to tell: then `due` has only the regular beats to say."""
        return not (self._checks or self._members.suspects or self._rumours)

    def due(self, now: float) -> Due:
        """What to do now; call it every 100 ms or so, and half as often while it `is_quiet`."""
        probe = tuple(sorted(self._checks))
        self._checks.clear()
        if now >= self._next_probe:
            self._next_probe = _following(self._next_probe, self.settings.probe_s, now)
            # Whoever holds a suspicion keeps asking the suspect itself, so it cannot miss the refutation by bad luck.
            suspects = self._members.suspects[:MAX_SUSPECTS]
            turn = self._round.next(lambda id: self._members[id].state is not NodeState.DEAD)
            probe = tuple(dict.fromkeys((*probe, *suspects, *([turn] if turn else []))))
        gossip: tuple[str, ...] = ()
        if self._rumours and now >= self._next_gossip:
            self._next_gossip = now + self.settings.gossip_s
            living = [id for id, m in self._members.items() if m.state is not NodeState.DEAD]
            gossip = tuple(self._rng.sample(living, min(self.settings.fanout, len(living))))
            if not gossip:
                self._rumours.clear()
        reconnect: tuple[str, ...] = ()
        if now >= self._next_reconnect:
            self._next_reconnect = _following(self._next_reconnect, self.settings.reconnect_s, now)
            dead = [id for id in self._members.dead if not self._members[id].left]
            reconnect = (self._rng.choice(dead),) if dead else ()
        return Due(probe, gossip, reconnect)

    def helpers(self, id: str) -> list[str]:
        """Whom to ask for an indirect probe of `id`."""
        others = [m.id for m in self.alive() if m.id != id]
        return self._rng.sample(others, min(self.settings.indirect, len(others)))

    def news(self, to: str) -> list[NodeInfo]:
        """What to tell `to` with the next message: first what it must know of itself, then what was told least often.

        Each call counts as one telling; news end after `retransmit` x log10(n + 1) of them. Our own refutation is not
        in it: the message names the sender with its incarnation anyway.
        """
        out = []
        held = self._members.get(to)
        if held is not None and (held.state is not NodeState.ALIVE or held.is_behind):
            out.append(held.told())
        most = self.settings.retransmit * math.ceil(math.log10(len(self._members) + 2))
        for id in self._rumours.take(self.settings.news - len(out), most):
            member = self._members.get(id)
            if member is not None and id != to:
                out.append(member.told())
        return out

    # ---- the rules ----

    def _alive(self, info: NodeInfo, direct: bool, now: float) -> list[Change]:
        if info.incarnation > MAX_INCARNATION:
            return []
        if info.id == self.id:
            return self._refute(info.incarnation) if info.incarnation > self.incarnation else []
        member = self._members.get(info.id)
        if member is None:
            if len(self._members) >= self.settings.most and not self._drop_one_dead():
                return []
            self._members.add(info, now)
            self._round.add(info.id)
            self._rumours.add(info.id)
            return [Change(Kind.JOINED, info)]
        if info.incarnation < member.info.incarnation:
            # Started again after its clock was set back: what is held is of its former life, and it can overtake that
            # only when it hears of it.
            member.is_behind = member.is_behind or direct
            return []
        member.is_behind = member.is_behind and not direct
        if info.incarnation == member.info.incarnation:
            # Others may hold older facts of the same incarnation, so only the node itself updates them.
            if member.state is not NodeState.ALIVE or not direct:
                return []
            before, member.info = member.info, info
            return [Change(Kind.UPDATED, info)] if _said(info) != _said(before) else []
        if direct or member.state is NodeState.DEAD:
            member.info = info
        else:
            member.info = replace(member.info, incarnation=info.incarnation, address=info.address)
        was = member.state
        self._members.enter(info.id, NodeState.ALIVE, now)
        member.left = False
        member.witnesses.clear()
        self._checks.discard(info.id)
        self._rumours.add(info.id)
        kind = {NodeState.DEAD: Kind.JOINED, NodeState.SUSPECT: Kind.RECOVERED}.get(was, Kind.UPDATED)
        return [Change(kind, member.info)]

    def _suspect(self, id: str, incarnation: int, by: str, now: float) -> list[Change]:
        if incarnation > MAX_INCARNATION:
            return []
        if id == self.id:
            return self._refute(incarnation)
        member = self._members.get(id)
        if member is None or member.state is NodeState.DEAD or incarnation < member.info.incarnation:
            return []
        if incarnation > member.info.incarnation:
            member.info = replace(member.info, incarnation=incarnation)
            member.witnesses.clear()
        first = by not in member.witnesses
        member.witnesses.add(by)
        if first and by == self.id:
            self._rumours.add(id)
        if member.state is NodeState.SUSPECT:
            return []
        self._members.enter(id, NodeState.SUSPECT, now)
        if by != self.id:
            self._checks.add(id)
        return [Change(Kind.SUSPECTED, member.told())]

    def _dead(self, id: str, incarnation: int, left: bool, now: float) -> list[Change]:
        if incarnation > MAX_INCARNATION:
            return []
        if id == self.id:
            return self._refute(incarnation)
        member = self._members.get(id)
        if member is None or incarnation < member.info.incarnation:
            return []
        if incarnation > member.info.incarnation:
            member.info = replace(member.info, incarnation=incarnation)
        member.left = member.left or left
        if member.state is NodeState.DEAD:
            return []
        self._members.enter(id, NodeState.DEAD, now)
        member.witnesses.clear()
        self._checks.discard(id)
        self._rumours.add(id)
        return [Change(Kind.LEFT if left else Kind.DIED, member.told())]

    def _refute(self, incarnation: int) -> list[Change]:
        if incarnation < self.incarnation:
            return []
        self.incarnation = incarnation + 1
        self._rumours.add(self.id)
        return [Change(Kind.REFUTED, NodeInfo(id=self.id, address="", incarnation=self.incarnation))]

    def _tick(self, now: float) -> list[Change]:
        changes: list[Change] = []
        for id in self._members.suspects:
            member = self._members[id]
            if now - member.since >= self.suspicion_s(len(member.witnesses)):
                changes += self._dead(id, member.info.incarnation, False, now)
        for id in self._members.dead:
            if now - self._members[id].since < self.settings.forget_s:
                break  # Those after it died later.
            self._remove(id)
        return changes

    def suspicion_s(self, witnesses: int) -> float:
        """How long a suspect of so many witnesses may take to refute, in seconds (Lifeguard's formula)."""
        s = self.settings
        living = 1 + self._members.living
        scale = max(1.0, math.log10(living))
        # Fewer can bear witness in a small mesh; alone, one gets the long time: there is nobody to confirm it.
        needed = min(s.witnesses, living - 1)
        share = math.log(max(1, witnesses)) / math.log(needed) if needed > 1 else 0.0
        return scale * max(s.suspicion_min_s, s.suspicion_max_s - (s.suspicion_max_s - s.suspicion_min_s) * share)

    def _drop_one_dead(self) -> bool:
        dead = self._members.dead
        if dead:
            self._remove(dead[0])
        return bool(dead)

    def _remove(self, id: str) -> None:
        self._members.remove(id)
        self._round.remove(id)
        self._rumours.drop(id)


def _said(info: NodeInfo) -> NodeInfo:
    """What of a node is worth a change: not what differs with every probe."""
    return replace(info, load=0.0, free_sequences=0, round_trip_ms=0.0, decode_tokens_per_s=0.0)


def _following(last: float, interval: float, now: float) -> float:
    """The next time of a regular beat that neither drifts nor catches up on what was missed."""
    return now + interval if now - last > interval else last + interval
