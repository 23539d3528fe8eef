"""The most that was measured of what noise only lowers, such as the speed at which a processor reads memory.

One measurement of such a thing is a lower bound: whatever else runs takes its part, nothing adds to it. So the largest
of several counts, over days too. It wears off, or a machine that became slower (a module of memory taken out, a
notebook on its battery) would be believed for ever: by half in a month, so that noise of a fifth is made good by one
quiet measurement in ten days, while a machine that is slower by half is known as such within a month.
"""

from __future__ import annotations

from dataclasses import dataclass

HALF_LIFE_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Peak:
    """`value` in any unit, above 0, and when it was measured, in seconds since the epoch."""

    value: float
    at: float


def peak(kept: Peak | None, measured: float, now: float) -> Peak:
    """The greater of what is kept, worn off by its age, and of what was measured `now`. Of a clock that went back
    nothing is made: what is from the future is as old as now."""
    if kept is None or measured >= worn(kept, now):
        return Peak(measured, now)
    return kept


def worn(kept: Peak, now: float) -> float:
    """What is left of a kept value."""
    return float(kept.value * 0.5 ** (max(now - kept.at, 0.0) / HALF_LIFE_S))
