"""Tokens to text: UTF-8 characters and stop strings may both span tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of successive tokens into text that is safe to show.

    What is given out is never taken back: an unfinished UTF-8 character is held, and so is any ending that might be the
    beginning of a stop string. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._parts: list[str] = []
        self.stopped_by = ""  # the stop string that was met
        self.given = 0  # characters that were given out

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return bool(self.stopped_by)

    @property
    def text(self) -> str:
        """All text that was given out."""
        return "".join(self._parts)

    @property
    def decoded(self) -> int:
        """Characters that were given out or are held."""
        return self.given + len(self._held)

    def feed(self, data: bytes) -> str:
        """Text that has become safe. After a stop string was met, `stopped_by` is set and nothing more comes."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        return self._advance(self._decoder.decode(b"", final=True), final=True)

    def _advance(self, text: str, *, final: bool = False) -> str:
        if self.stopped:
            return ""
        pending = self._held + text
        found, stop = min(((i, s) for s in self._stops if (i := pending.find(s)) >= 0), default=(-1, ""))
        if found >= 0:
            self.stopped_by = stop
            safe, self._held = pending[:found], ""
        else:
            hold = 0 if final else max((_overlap(pending, s) for s in self._stops), default=0)
            safe, self._held = pending[: len(pending) - hold], pending[len(pending) - hold :]
        if safe:
            self._parts.append(safe)
            self.given += len(safe)
        return safe


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
