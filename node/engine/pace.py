"""How long steps take, learned while they run, and what that allows: prompts beside those who write, guessed tokens.

A step's time grows slowly with its rows at first (the weights are read once for all), then in proportion. How slowly
depends on the machine, the model and the other load, so it is measured and not assumed: one figure for each number of
rows that decoding alone has had, and a line for a prompt's token (`node.engine.rows`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from node.engine.least import MANY, Least
from node.engine.rows import RowCost

# While one prompt is computed, those who write may wait this many times as long for their next token. What is promised
# is three times at most, but for one token in a hundred; the rest is for a machine's noise (tests/engine/test_load.py).
# Each further request that waits adds FURTHER steps: a larger piece of a prompt delays the writers now and not in all,
# while the weights that are read once more for every small piece delay all that wait. But not longer than STALL_S for
# more than one: four tokens a second, about as fast as people read. Where a step alone takes nearly that (a large
# model on a processor), twice what one prompt would make them wait is the limit: with no more than that one's, twelve
# clients had 0.84 and thirty-two 0.83 of the throughput of whole prompts first, and waited longer too; so they have
# 0.94 and 0.98 (tests/engine/test_load.py).
STALL = 2.25
FURTHER = 2.0
STALL_S = 0.25
STALL_MOST = 5.0
# Before anything was measured.
FIRST_ROOM = 64
# Batches of up to so many sequences take about as long as one alone; their speed is what a node says of itself.
SMALL_BATCH = 4
# Their mean over so long is one figure. Steps of a tiny model take 0.2 ms, and twenty times as long while another
# program has one of the cores (the threads of a step wait for each other): single ones say nothing.
WINDOW_S = 0.05
# Of a batch of at least this many prompt rows and next to no others the speed of prefilling is measured.
MEASURED_ROWS = 64
# Bursts of other programs on the machine make single steps many times longer: what is slower than before counts little.
FASTER, SLOWER = 0.3, 0.05
# A prompt's rows grow dearer step by step, which is to be noticed; what is far too slow is cut (`node.engine.rows`).
ROWS_SLOWER = 0.1


@dataclass(slots=True)
class Room:
    """What prompts may add to a step: rows, and the seconds that these may take; `least` rows in any case, and no more
    with `is_try` where there is no time for `MANY`."""

    rows: int
    seconds: float = math.inf
    least: int = 0
    is_try: bool = False

    def fits(self, row_s: float, share: float = 1.0) -> int:
        """Rows of so many seconds each that fit into a share of it."""
        by_time = self.rows if self.seconds == math.inf else int(max(self.seconds, 0.0) / row_s)
        rows = self.least if self.is_try and by_time < MANY else max(by_time, self.least)
        rows = min(self.rows, rows)
        return max(int(share * rows), min(rows, 1))  # of the least, too, everybody has a part

    def take(self, rows: int, row_s: float) -> None:
        """So many rows of so many seconds each are in."""
        self.rows -= rows
        self.seconds -= rows * row_s
        self.least = max(self.least - rows, 0)


class Pace:
    """Measured times in seconds."""

    def __init__(self, prefill_s: float, *, is_measured: bool = False) -> None:
        self._rows = RowCost(prefill_s)
        self._least = Least()  # a prompt must come to its end: so many of its tokens enter in any case
        self._is_guess = not is_measured
        self._windows: deque[float] = deque(maxlen=32)  # the mean of small decode steps, over WINDOW_S each
        self._steps, self._steps_s = 0, 0.0  # of the window that is being filled
        self._decode: dict[int, float] = {}  # by rows

    @property
    def prefill_s(self) -> float:
        """Seconds of a prompt's token, as prompts come here."""
        return self._rows.usual_s

    def row_s(self, before: float) -> float:
        """Seconds of a prompt's token with so many before it."""
        return self._rows.at(before)

    @property
    def small_step_s(self) -> float:
        """Seconds of a small decode step, the median over windows of decode time; 0: not measured."""
        if not self._windows:
            return self._steps_s / self._steps if self._steps else 0.0
        return median(self._windows)

    def saw(self, writing: int, prompt: int, seconds: float, before: float = 0.0) -> None:
        """A step of `writing` rows that decode and `prompt` rows of prompts, with so many tokens before them on
        average, took so long."""
        if seconds <= 0:
            return  # the clock saw nothing of it
        if not prompt:
            self._decode[writing] = _smooth(self._decode.get(writing), seconds)
            if writing <= SMALL_BATCH:
                self._steps, self._steps_s = self._steps + 1, self._steps_s + seconds
                if self._steps_s >= WINDOW_S:
                    self._windows.append(self._steps_s / self._steps)
                    self._steps, self._steps_s = 0, 0.0
            return
        rows_s = seconds - self.step_s(writing)  # the weights are read for them, too, but once for all
        if rows_s <= 0:
            return
        if prompt >= MEASURED_ROWS and writing <= 1:
            share = 1.0 if self._is_guess else FASTER
            self._rows.saw(before, rows_s / prompt, share, share)
            self._is_guess = False
        elif self._decode:
            is_usual = prompt >= self._least.rows and not self._least.is_try
            self._least.saw(prompt, rows_s)
            if is_usual:
                self._rows.saw(before, rows_s / prompt, FASTER, ROWS_SLOWER)

    def step_s(self, rows: int) -> float:
        """Seconds that a step of so many decoding rows is expected to take; 0: nothing was measured."""
        below = max((n for n in self._decode if n <= rows), default=0)
        above = min((n for n in self._decode if n >= rows), default=0)
        if below == above or not above:
            # Past what was seen, a row costs about twice what it does in a long prompt.
            return self._decode[below] + 2 * self.prefill_s * (rows - below) if below else 0.0
        if not below:
            return self._decode[above]
        low, high = self._decode[below], self._decode[above]
        return low + (high - low) * (rows - below) / (above - below)

    def room(self, writing: int, waiting: int, rows: int) -> Room:
        """What may join a step in which `writing` rows decode, `rows` at most, while so many requests wait for
        theirs."""
        step = self.step_s(writing)
        if not writing:
            return Room(rows)
        if not step:
            return Room(min(rows, FIRST_ROOM))
        most = max(STALL_S, STALL_MOST * step) - step
        seconds = min((STALL - 1 + FURTHER * (waiting - 1)) * step, most)
        return Room(rows, seconds, self._least.next(), self._least.is_try)

    def worth(self, rows: int, writing: int, most: int, chance: float) -> int:
        """How many guessed tokens, up to `most`, to add to a step of `rows` rows in which `writing` candidates write.

        Each is right with probability `chance` if those before it are. Added is what makes the most tokens a second.
        """
        step = self.step_s(rows)
        if not step:
            return 0
        best, best_rate = 0, writing / step
        gained, right = 0.0, 1.0
        for more in range(1, most + 1):
            right *= chance
            gained += right
            rate = (writing + gained) / self.step_s(rows + more)
            if rate > best_rate:
                best, best_rate = more, rate
        return best


def _smooth(old: float | None, new: float) -> float:
    if old is None:
        return new
    return old + (FASTER if new < old else SLOWER) * (new - old)
