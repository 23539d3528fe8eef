"""A snapshot on its way into the engine: put together in memory as its blocks come, written to the disk afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence

from node.core.blob import Bytes
from node.core.snapshot import Assembly, Block, Header, Ours
from node.store import Blocks

# Threads that read, check and copy blocks; all of it leaves the interpreter's lock. More than four wait for memory.
WORKERS = min(4, os.cpu_count() or 1)


class Incoming:
    """The state of a checked header. `add` and `load` may run side by side."""

    def __init__(self, head: Header, ours: Ours, blocks: Blocks) -> None:
        self.head = head
        self._assembly = Assembly(head, ours)
        self._blocks = blocks
        self._new: list[tuple[Block, bytes]] = []

    def add(self, each: Block, data: bytes) -> None:
        """A block from a peer; it blocks. Raises CorruptSnapshot."""
        self._assembly.add(each, data, digest=each.digest)
        self._new.append((each, data))

    async def load(self, held: Sequence[Block]) -> None:
        """Blocks from our own disk, on several threads. Raises CorruptSnapshot."""

        def some(begin: int) -> None:
            for each in itertools.islice(held, begin, None, WORKERS):
                self._assembly.add(each, self._blocks.get(each.key))

        await asyncio.gather(*(asyncio.to_thread(some, i) for i in range(min(WORKERS, len(held)))))

    def state(self) -> Bytes:
        """All of it, for the engine. Raises ValueError if blocks did not come."""
        return self._assembly.state()

    def keep(self) -> None:
        """Write what came to the disk; it blocks. Of a snapshot that broke off, the next transfer then needs the rest
        only. Raises OSError."""
        for each, data in self._new:
            self._blocks.put(each.key, data)


Put = Callable[[Block, bytes], None]
