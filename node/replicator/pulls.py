"""KV that a turn waits for, from another node: pulled if that is quicker than computing, kept when there is time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from node.errors import ConclaveError
from node.replicator.incoming import Incoming
from node.replicator.links import Links
from node.replicator.rates import Measured
from node.replicator.snapshots import Snapshots
from node.replicator.transfer import Transfer
from node.replicator.turns import Peers, Turns
from node.store import Store
from node.types import Version

log = logging.getLogger(__name__)

# A prompt is not worth asking peers for KV if computing it takes less than this.
PULL_WORTH_S = 0.1
# What was pulled for a turn goes to the disk so long after, when the first token is out.
KEEP_S = 0.25


class Pulls:
    """Pulls of this node, one at a time a topic. `spawn` begins what goes on in the background."""

    def __init__(
        self,
        fingerprint: str,
        mesh: Peers,
        store: Store,
        snapshots: Snapshots,
        transfer: Transfer,
        turns: Turns,
        links: Links,
        measured: Measured,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Future[Any] | None],
    ) -> None:
        self._fingerprint = fingerprint
        self._mesh = mesh
        self._store = store
        self._snapshots = snapshots
        self._transfer = transfer
        self._turns = turns
        self._links = links
        self._measured = measured
        self._spawn = spawn
        self._pulling: set[str] = set()  # topics that are on their way here
        self._keeping: dict[str, asyncio.Future[Any]] = {}  # topic -> what came for it goes to the disk

    async def kept(self, topic: str) -> None:
        """Wait until what came for a topic is on the disk."""
        if (keeping := self._keeping.get(topic)) is not None:
            await asyncio.wait([keeping])

    async def pull(self, topic: str, tokens: int, prefill_s: float) -> Incoming | None:
        """A topic's snapshot from a peer, if that is quicker than computing `tokens` tokens at `prefill_s` seconds
        each."""
        is_coming = topic in self._keeping or topic in self._pulling
        if tokens * prefill_s < PULL_WORTH_S or self._store.version(topic) == Version() or is_coming:
            return None
        self._pulling.add(topic)
        try:
            return await self._from_any(topic, tokens, prefill_s)
        finally:
            self._pulling.discard(topic)

    async def _from_any(self, topic: str, tokens: int, prefill_s: float) -> Incoming | None:
        maker = self._store.version(topic).node_id
        peers = [p for p in self._mesh.peers() if p.info.fingerprint == self._fingerprint]
        keepers = {p.id for p in self._turns.keepers(topic, more=1)}
        near = [p for p in peers if p.id == maker] + [p for p in peers if p.id in keepers and p.id != maker]
        for peer in near:
            try:
                incoming = await self._transfer.pull(peer, topic, tokens, prefill_s)
            except (ConclaveError, OSError) as e:
                log.info("the snapshot of a topic did not come from node %s: %s", peer.id, e)
                continue
            if incoming is not None:
                self._keep_later(topic, incoming)
                return incoming
            if self._measured.is_wanted(peer.id):
                self._spawn(self._links.measure(peer.id))
        return None

    def _keep_later(self, topic: str, incoming: Incoming) -> None:
        """What a turn is waiting for goes to the disk when the turn has begun to be answered."""

        async def keep() -> None:
            try:
                await asyncio.sleep(KEEP_S)
                await asyncio.to_thread(incoming.keep)
                await self._snapshots.save(incoming.head)
            except OSError as e:
                self._snapshots.failed(e)
            except ConclaveError as e:
                log.info("the snapshot of a topic was not kept: %s", e)
            finally:
                del self._keeping[topic]

        if (task := self._spawn(keep())) is not None:
            self._keeping[topic] = task
