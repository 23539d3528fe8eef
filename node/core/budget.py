"""Which snapshots leave the disk first: decisions only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from node.types import Version


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot on disk as far as decisions go; `last_used` is in seconds of any clock."""

    topic: str
    version: Version
    tokens: int
    keys: tuple[bytes, ...]
    header_bytes: int
    last_used: float


def used(stored: Stored, now: float) -> Stored:
    """The snapshot after a use."""
    return replace(stored, last_used=now)


def leave(stored: Iterable[Stored], sizes: Mapping[bytes, int], now: float) -> list[Stored]:
    """Snapshots in the order in which they leave: the least valuable first.

    What a snapshot saves is the prefilling of its tokens, whose time grows a little faster than their number (attention
    looks back); what it takes is the room of the blocks that no other snapshot has; and what was left alone for long
    comes back least. So the value is tokens, weighted, by room and age.
    """
    held = list(stored)
    shared = Counter(key for each in held for key in set(each.keys))

    def value(each: Stored) -> tuple[float, str]:
        room = each.header_bytes + sum(sizes.get(key, 0) for key in set(each.keys) if shared[key] == 1)
        work = each.tokens * (1.0 + each.tokens / 8192.0)
        return work / (max(room, 1) * (60.0 + max(now - each.last_used, 0.0))), each.topic

    return sorted(held, key=value)
