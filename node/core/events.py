"""What can happen to a membership, what changes by it, and what is due then. `node.core.members` has the rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.types import NodeInfo


class Kind(StrEnum):
    """What happened to a member."""

    JOINED = "joined"  # New, or back from the dead.
    UPDATED = "updated"  # It says something new about itself.
    SUSPECTED = "suspected"
    RECOVERED = "recovered"  # It refuted the suspicion.
    DIED = "died"
    LEFT = "left"  # It said goodbye.
    REFUTED = "refuted"  # We were suspected and raised our own incarnation.


@dataclass(frozen=True, slots=True)
class Change:
    """One change, with the member as it is now; `info.state` is alive, suspect or dead (or draining)."""

    kind: Kind
    info: NodeInfo


@dataclass(frozen=True, slots=True)
class Alive:
    """`info` is alive in its incarnation. `direct`: the node said so itself, just now."""

    info: NodeInfo
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """The node `by` could not reach `id`, which was in `incarnation`."""

    id: str
    incarnation: int
    by: str


@dataclass(frozen=True, slots=True)
class Dead:
    """`id` is dead in `incarnation`; `left`: it said so itself."""

    id: str
    incarnation: int
    left: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """Our own probe of `id`, direct and indirect, found nothing."""

    id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Alive | Suspect | Dead | Failed | Tick


@dataclass(frozen=True, slots=True)
class Due:
    """What to do now, by node id."""

    probe: tuple[str, ...] = ()
    gossip: tuple[str, ...] = ()  # Send our news to these.
    reconnect: tuple[str, ...] = ()  # Dead ones to call again.
