"""What a measurement that is made now and then said lately: a process may be stopped, or a core be taken by others, in
the middle of any of them, and then it says a thousand times too much.

What is held for slow is not tried, so nothing would ever correct it. A machine's own speed is the quickest of some
(what disturbs a measurement makes it slower, never quicker), and is tried again after some minutes. A link may
really be slow, so of that the median counts.
"""

from __future__ import annotations

from statistics import median

KEPT = 8
MINUTES_S = 600.0


class Recent:
    """The last few figures, each with the time at which it was measured, in seconds."""

    def __init__(self, kept: int = KEPT, for_s: float = MINUTES_S) -> None:
        self._figures: tuple[tuple[float, float], ...] = ()  # made anew each time, as other threads look at it
        self._kept, self._for_s = kept, for_s

    def add(self, figure: float, now: float) -> None:
        """Note what was measured."""
        self._figures = (*self._figures, (figure, now))[-self._kept :]

    def least(self, now: float, otherwise: float) -> float:
        """The least of them, or `otherwise` where there is none, or the last one is old. (Not each by its own age: what
        held up one measurement for an hour made the others old.)"""
        if not self._figures or now - self._figures[-1][1] > self._for_s:
            return otherwise
        return min(figure for figure, _ in self._figures)

    def middle(self) -> float:
        """The median, however old. Raises StatisticsError where there is none."""
        return median(figure for figure, _ in self._figures)
