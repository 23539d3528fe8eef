"""Which piece of a model comes from which peer. Decisions only.

Each source takes the first piece that nobody has taken, so that a quick one brings more than a slow one. At the end,
when all are taken, a source that is idle takes one that another has had for longest as well: a slow or frozen source
does not hold up the last of them (BitTorrent's "end game", BEP 3). A source that fails gives back what it had.
"""

from __future__ import annotations

from collections.abc import Iterable

SHARED = 2  # sources that may bring one piece at a time


class Pieces:
    """The pieces of one download, by index, and who brings them."""

    def __init__(self, count: int, held: Iterable[int] = ()) -> None:
        done = set(held)
        self._todo = [i for i in reversed(range(count)) if i not in done]
        self._taken: dict[int, list[str]] = {}  # in the order in which they were first taken
        self.left = len(self._todo)

    def take(self, source: str) -> int | None:
        """The next piece for a source; None: there is none for it now."""
        if self._todo:
            piece = self._todo.pop()
            self._taken[piece] = [source]
            return piece
        for piece, sources in self._taken.items():
            if source not in sources and len(sources) < SHARED:
                sources.append(source)
                return piece
        return None

    def done(self, piece: int) -> bool:
        """A right piece has come. Says whether it is the first of its kind."""
        if self._taken.pop(piece, None) is None:
            return False
        self.left -= 1
        return True

    def failed(self, piece: int, source: str) -> None:
        """A source does not bring a piece after all."""
        sources = self._taken.get(piece)
        if sources is None or source not in sources:
            return
        sources.remove(source)
        if not sources:
            del self._taken[piece]
            self._todo.append(piece)
