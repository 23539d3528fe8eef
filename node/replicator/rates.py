"""What links and codecs were measured to do, and the cap on replication."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from node.core.recent import Recent
from node.core.snapshot import Rates

# A transfer smaller than this says more about delays than about the link.
MEASURED_BYTES = 128 << 10
# A cap may be exceeded for so long, so that what is small goes at once.
BURST_S = 0.05


# Of a link the median of so many transfers counts: two that were held up by something else change nothing.
LINKS_KEPT = 5
# Links that are known; the one that carried nothing for longest goes first. Node ids come and go, the node stays.
MOST_LINKS = 256


class Measured:
    """Seconds a byte, of each peer's link and of reading, checking and putting together blocks."""

    def __init__(self, mbps: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_link_s = 8.0 / (mbps * 1e6) if mbps else 0.0
        self._links: dict[str, Recent] = {}
        self._codec = Recent()
        self._clock = clock
        self._doubted: set[str] = set()
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
        found = [each.middle() for each in list(self._links.values())]
        return max([*found, self._least_link_s], default=0.0) or Rates().link_s

    def links(self) -> dict[str, float]:
        """Seconds a byte of the links that were measured, by node."""
        return {peer: self._link(peer) for peer in self._links}

    def moved(self, peer: str, size: int, seconds: float) -> None:
        """Note a transfer."""
        if size >= MEASURED_BYTES and seconds > 0:
            link = self._links[peer] = self._links.pop(peer, Recent(LINKS_KEPT))
            link.add(seconds / size, self._clock())
            self._doubted.discard(peer)
            if len(self._links) > MOST_LINKS:
                oldest = next(iter(self._links))
                del self._links[oldest]
                self._doubted.discard(oldest)

    def doubt(self, peer: str) -> None:
        """Something was not taken from a peer, as its link is slow: that is to be measured again."""
        if peer in self._links:
            self._doubted.add(peer)

    def is_wanted(self, peer: str) -> bool:
        """Whether a peer's link should be measured."""
        return peer not in self._links or peer in self._doubted

    def decoded(self, size: int, seconds: float) -> None:
        """Note a snapshot that was read, checked and put together."""
        if size >= MEASURED_BYTES and seconds > 0:
            self._codec.add(seconds / size, self._clock())

    @property
    def _codec_s(self) -> float:
        return self._codec.least(self._clock(), Rates().codec_s)

    def _link(self, peer: str) -> float:
        found = self._links.get(peer)
        return max(found.middle() if found is not None else Rates().link_s, self._least_link_s)


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
