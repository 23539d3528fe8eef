"""What a person should know of the mesh: what is true now, and what was told already. Pure: `now` is passed in, in
seconds of any clock that does not go back."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX = 50  # Lines that are true at a time; then the oldest goes.
AGAIN_S = 600.0  # A line that comes and goes is not told to a person more often; `lines` has it all the while.
MAX_TOLD = 256


@dataclass(frozen=True, slots=True)
class _Notice:
    line: str
    ends: float


class Notices:
    """Lines by what they are about: a new one about the same takes the place of the old."""

    def __init__(self) -> None:
        self._true: dict[str, _Notice] = {}
        self._told: dict[str, float] = {}

    def say(self, line: str, now: float, key: str = "", lasts_s: float = math.inf) -> bool:
        """Keeps a line about `key` (the line itself, if empty), true for so long unless it is said again. Returns
        whether a person is to be told."""
        key = key or line
        held = self._true.get(key)
        is_held = held is not None and held.line == line and held.ends > now
        if not is_held:
            self._true.pop(key, None)  # so that it becomes the newest
        self._true[key] = _Notice(line, now + lasts_s)
        while len(self._true) > MAX:
            del self._true[next(iter(self._true))]
        told = self._told.pop(line, -math.inf)
        self._told[line] = now
        while len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
        return not is_held and now - told >= AGAIN_S

    def withdraw(self, key: str) -> None:
        """What was said about `key` is no longer true; harmless if nothing was."""
        self._true.pop(key, None)

    def lines(self, now: float) -> list[str]:
        """What is true now, the oldest first."""
        self._true = {key: notice for key, notice in self._true.items() if notice.ends > now}
        return [notice.line for notice in self._true.values()]
