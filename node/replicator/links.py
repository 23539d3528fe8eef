"""How quick the links to other nodes are, measured before anything has to be decided by it."""

from __future__ import annotations

import asyncio
import logging
import random

from node.engine.face import EngineFace
from node.errors import ConclaveError
from node.replicator.rates import Measured
from node.replicator.transfer import Transfer
from node.replicator.turns import Peers

log = logging.getLogger(__name__)

# The link to a node that came is measured about so much later, and so often it is tried when there is something to do.
MEASURE_AFTER_S = 1.0
MEASURING_TRIES = 5


class Links:
    """The links to nodes of our model; none is measured where KV is not kept. `one_of_few` is of all that is sent in
    the background."""

    def __init__(
        self, engine: EngineFace, mesh: Peers, measured: Measured, transfer: Transfer, one_of_few: asyncio.Semaphore
    ) -> None:
        self._engine = engine
        self._mesh = mesh
        self._measured = measured
        self._transfer = transfer
        self._one_of_few = one_of_few

    async def measure(self, node_id: str) -> None:
        """Measure the link to a node when neither has anything to do; else its next transfer will tell."""
        for _ in range(MEASURING_TRIES):
            await asyncio.sleep(MEASURE_AFTER_S * random.uniform(0.5, 1.5))
            peer = next((p for p in self._mesh.peers() if p.id == node_id), None)
            if peer is None or not self._measured.is_wanted(node_id):
                return
            load = self._engine.load
            if load.queued or load.free < self._engine.info.sequences or peer.info.load > 0:
                continue
            try:
                async with self._one_of_few:
                    await self._transfer.measure(peer)
            except ConclaveError as e:
                log.info("the link to node %s was not measured: %s", node_id, e)
            return
