"""Whom to call first, of all that are said to exist: what was announced last, and what failed least often.

On a network where many nodes came and went, most announcements are of nodes that are gone, and a call to nobody takes
its whole timeout. So many go on at once, those that failed before never take all the places, and what is news goes
before what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

# A handshake costs about 5 ms of CPU, 30 on a small board: all of them at once must be done before a Hello is given up.
MOST = 32
AGAIN = 24  # of those that failed before


class Dials:
    """The calls that go on, and those that wait for one of at most `most` places, of which `again` at most are for what
    failed before."""

    def __init__(self, most: int = MOST, again: int = AGAIN) -> None:
        self._most = most
        self._again = again
        self._numbers = itertools.count()
        self._busy = self._busy_again = 0
        self._waiting: dict[asyncio.Future[None], tuple[int, int]] = {}  # failures, and the newest first

    @contextlib.asynccontextmanager
    async def place(self, failures: int = 0) -> AsyncIterator[None]:
        """A place for the time of the block, for a call that failed so many times before."""
        await self._take(failures)
        try:
            yield
        finally:
            self._free(failures)
            self._admit()

    async def _take(self, failures: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = failures, -next(self._numbers)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None:  # it had its place by then
                self._free(failures)
                self._admit()
            raise

    def _free(self, failures: int) -> None:
        self._busy -= 1
        self._busy_again -= failures > 0

    def _admit(self) -> None:
        while self._waiting and self._busy < self._most:
            turn = min(self._waiting, key=self._waiting.__getitem__)
            failures, _ = self._waiting[turn]
            if failures and self._busy_again >= self._again:
                return
            del self._waiting[turn]
            self._busy += 1
            self._busy_again += failures > 0
            if not turn.done():  # else its task was cancelled a moment ago, and gives the place back when it runs
                turn.set_result(None)
