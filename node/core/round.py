"""Whose turn it is to be probed: a shuffled round robin, which bounds the time until every node was, as a random choice
does not (SWIM, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


class Round:
    """An order of ids that is shuffled each time it begins."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._order: list[str] = []
        self._at = 0

    def add(self, id: str) -> None:
        """At a random place, as SWIM has it: else all nodes would probe a newcomer at the same time."""
        self._order.insert(self._rng.randint(0, len(self._order)), id)

    def remove(self, id: str) -> None:
        """It is not probed any more."""
        self._order.remove(id)

    def next(self, is_wanted: Callable[[str], bool]) -> str | None:
        """The next id that is wanted; None if none is."""
        for _ in range(len(self._order) + 1):
            if self._at >= len(self._order):
                self._at = 0
                self._rng.shuffle(self._order)
                if not self._order:
                    return None
            id = self._order[self._at]
            self._at += 1
            if is_wanted(id):
                return id
        return None
