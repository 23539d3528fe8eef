"""What a row of a prompt takes: so much by itself, and so much more for what it attends to.

With our kernels the last row of a prompt of 4,000 tokens takes three and a half times what the first one takes. One
figure for both is either too low at a prompt's end, where those who write then wait too long, or too high at its
beginning.
"""

from __future__ import annotations

# So many tokens before it are the unit. A row's attention then costs about as much as the rest of it, so that what is
# learned at one end of a prompt and at the other weighs about the same.
UNIT = 1024
# What took longer than this many times what was expected counts as that: a burst of another program on the machine.
MOST = 2.0
LEAST_S = 1e-9


class RowCost:
    """A line through what was seen, in seconds a row."""

    def __init__(self, row_s: float) -> None:
        self._row_s = row_s
        self._unit_s = 0.0  # for each `UNIT` tokens before it
        self._usual = 0.0  # tokens before the rows that were seen last

    @property
    def usual_s(self) -> float:
        """A row of prompts as they come here."""
        return self.at(self._usual)

    def at(self, before: float) -> float:
        """A row with so many tokens before it."""
        return self._row_s + self._unit_s * before / UNIT

    def saw(self, before: float, seconds: float, faster: float, slower: float) -> None:
        """Rows with so many tokens before them took so long each; a share of the difference is believed."""
        expected = self.at(before)
        share = faster if seconds < expected else slower
        self._usual += share * (before - self._usual)
        if share < 1.0:
            seconds = min(seconds, MOST * expected)
        # The least change of both figures that brings the line so far (normalized least mean squares).
        units = before / UNIT
        change = share * (seconds - expected) / (1 + units * units)
        self._row_s = max(self._row_s + change, LEAST_S)
        self._unit_s = max(self._unit_s + units * change, 0.0)
