"""What links and codecs were measured to do, and the cap on replication."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from node.core.snapshot import Rates

# A transfer smaller than this says more about delays than about the link.
MEASURED_BYTES = 128 << 10
# A cap may be exceeded for so long, so that what is small goes at once.
BURST_S = 0.05


class Measured:
    """Seconds a byte, of each peer's link and of encoding and decoding blocks; each new figure counts for a third."""

    def __init__(self, mbps: int = 0) -> None:
        self._least_link_s = 8.0 / (mbps * 1e6) if mbps else 0.0
        self._links: dict[str, float] = {}
        self._codec_s = Rates().codec_s
        self.restore_s = Rates().restore_s  # the engine's own figure, as of the last look

    def rates(self, peer: str) -> Rates:
        """For taking something over from a peer."""
        return Rates(link_s=self._link(peer), codec_s=self._codec_s, restore_s=self.restore_s)

    def local(self) -> Rates:
        """For taking something over from our own disk."""
        return Rates(link_s=0.0, codec_s=self._codec_s, restore_s=self.restore_s)

    @property
    def slowest_link_s(self) -> float:
        """Seconds a byte of the slowest link that was measured."""
        return max([*self._links.values(), self._least_link_s], default=0.0) or Rates().link_s

    def links(self) -> dict[str, float]:
        """Seconds a byte of the links that were measured, by node."""
        return {peer: self._link(peer) for peer in self._links}

    def moved(self, peer: str, size: int, seconds: float) -> None:
        """Note a transfer."""
        if size >= MEASURED_BYTES and seconds > 0:
            before = self._links.get(peer)
            self._links[peer] = seconds / size if before is None else 0.67 * before + 0.33 * seconds / size

    def decoded(self, size: int, seconds: float) -> None:
        """Note a snapshot that was read, checked and put together."""
        if size >= MEASURED_BYTES and seconds > 0:
            self._codec_s = 0.67 * self._codec_s + 0.33 * seconds / size

    def _link(self, peer: str) -> float:
        return max(self._links.get(peer, Rates().link_s), self._least_link_s)


class Pace:
    """A cap in Mbit/s (0: none), shared by all that replicates; `take` waits until so many bytes may go."""

    def __init__(
        self,
        mbps: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_s = mbps * 1e6 / 8
        self._clock, self._sleep = clock, sleep
        self._free_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether there is a cap."""
        return self._per_s > 0

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        if not self._per_s:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now - BURST_S) + size / self._per_s
        if self._free_at > now:
            await self._sleep(self._free_at - now)
