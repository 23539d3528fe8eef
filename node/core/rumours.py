"""Which news a node tells next: the least told first, each a limited number of times. Pure."""

from __future__ import annotations


class Rumours:
    """Subjects (node ids) of which there is news, with how often it was told."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._told)

    def add(self, subject: str) -> None:
        """There is news of a subject; what was told of it before is old."""
        self._told[subject] = 0

    def drop(self, subject: str) -> None:
        """Nothing is to be told of a subject any more."""
        self._told.pop(subject, None)

    def clear(self) -> None:
        """Nobody is there to be told."""
        self._told.clear()

    def take(self, limit: int, most: int) -> list[str]:
        """Up to `limit` subjects to tell now; each ends with its `most`-th telling."""
        chosen = sorted(self._told, key=lambda s: self._told[s])[:limit]
        for subject in chosen:
            self._told[subject] += 1
            if self._told[subject] >= most:
                del self._told[subject]
        return chosen
