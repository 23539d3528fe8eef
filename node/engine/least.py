"""How few rows of a prompt a step is given where time allows hardly any: a piece that pays.

Those who write wait for the piece; the prompt must come to its end all the same. What fewer rows save is a matter of
kernels, and is tried. Our attention has eight rows of seven heads in four registers, so that two rows take 0.55 to 0.61
of the time of eight: a prompt that got two a step would take more than twice as long, for little. With llama.cpp's own
kernels it is 0.43 after 1,000 tokens, 0.32 after 2,000 (Qwen2.5-0.5B's shape, two threads; scripts/bench/RESULTS.md).
"""

from __future__ import annotations

from collections import deque
from statistics import median

MANY, FEW = 8, 2
# Few rows are the least where they take less than PAYS of the time of many, and no longer where that turns out to be
# more than FAILS.
PAYS, FAILS = 0.47, 0.52
# So many comparisons make a verdict, one after every SOON pieces until then, one after every LATER pieces from then on.
TRIES, SOON, LATER = 7, 4, 32
# With many rows those who write wait three times as long or longer, which one token in a hundred may.
RARELY = 150
# One piece in the time of another program says nothing.
USUAL = 5


class Least:
    """Learned from pieces in seconds: what they add to a step."""

    def __init__(self) -> None:
        self.rows = MANY
        self._next = MANY
        self._took = {rows: deque[float](maxlen=USUAL) for rows in (MANY, FEW)}
        self._shares = deque[float](maxlen=TRIES)  # the time of few over that of many
        self._since = 0  # pieces since the last comparison

    @property
    def is_try(self) -> bool:
        """Whether the next piece is to have so many rows even where time allows some more of them."""
        return self._next != self.rows

    def next(self) -> int:
        """The least rows of the next piece: now and then the other number, to learn from it."""
        if self.rows == FEW:
            self._next = MANY if self._since >= RARELY else FEW
        else:
            self._next = FEW if self._since >= (LATER if len(self._shares) == TRIES else SOON) else MANY
        return self._next

    def saw(self, rows: int, seconds: float) -> None:
        """The piece took so long. One of another size than was tried says nothing."""
        was_try, self._next = self.is_try, self.rows
        if was_try:
            self._since = 0
        elif rows <= MANY:
            self._since += 1
        if rows not in self._took:
            return
        self._took[rows].append(seconds)
        if was_try and rows != self.rows and self._took[self.rows]:
            usual = median(self._took[self.rows])
            self._shares.append(seconds / usual if rows == FEW else usual / seconds)
            self._judge()

    def _judge(self) -> None:
        if len(self._shares) < TRIES:
            return
        share = median(self._shares)
        if share < PAYS:
            self.rows = FEW
        elif share > FAILS:
            self.rows = MANY
        self._next = self.rows
