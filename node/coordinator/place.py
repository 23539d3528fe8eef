"""Where turns take place: what every turn of this node needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from node.coordinator.local import LocalPhase
from node.mesh.peer import Peer
from node.replicator import Replicator
from node.store import Standings, Store
from node.types import EarlyStop


class Peers(Protocol):
    """What the coordinator needs of the mesh."""

    def peers(self) -> list[Peer]:
        """The peers that are alive."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where turns take place: this node's parts that every turn needs. `clock` gives monotonic seconds; `ensemble` is
    whether nodes with other models vote too."""

    id: str
    local: LocalPhase
    mesh: Peers
    store: Store
    clock: Callable[[], float]
    strict: bool = False
    early_stop: EarlyStop = EarlyStop.ADAPTIVE
    replicator: Replicator | None = None  # None: topics are on this node alone
    standings: Standings = field(default_factory=Standings)
    ensemble: bool = True
    background: set[asyncio.Task[None]] = field(default_factory=set)
