"""Snapshots that lately went from here to a peer or the other way, for people to watch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

KEPT = 32


@dataclass(frozen=True, slots=True)
class Travel:
    """One of them. `number` counts from 1; `bytes` were sent; `at` is in seconds of the clock."""

    number: int
    topic: str
    source: str
    target: str
    bytes: int
    tokens: int
    at: float


class Travels:
    """The last `KEPT` of them. `node_id` is this node's."""

    def __init__(self, node_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._id = node_id
        self._clock = clock
        self._count = 0
        self.last: deque[Travel] = deque(maxlen=KEPT)

    def sent(self, peer: str, topic: str, size: int, tokens: int) -> None:
        """A peer has it from us."""
        self._add(self._id, peer, topic, size, tokens)

    def received(self, peer: str, topic: str, size: int, tokens: int) -> None:
        """We have it from a peer."""
        self._add(peer, self._id, topic, size, tokens)

    def age_ms(self, travel: Travel) -> float:
        """How long ago it arrived, in milliseconds."""
        return (self._clock() - travel.at) * 1e3

    def _add(self, source: str, target: str, topic: str, size: int, tokens: int) -> None:
        self._count += 1
        self.last.append(Travel(self._count, topic, source, target, size, tokens, self._clock()))
