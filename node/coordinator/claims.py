"""One turn for one request, whichever nodes are asked: who answers a request that several nodes were given.

A client that hears nothing from one node asks another, with the same request id, while the first may still be at it.
So before a turn of a topic begins, its node names the request to a few peers, the same for every node (its witnesses:
`Turns.witnesses`), with the question for newer turns that they are asked anyway. They note it, and tell of other nodes
that named it before: of any two that do, the later one hears of the earlier. Only these ask each other. A node that is
at work on the request, or that claims it too and has the lower id, goes first; the other waits until that one is done
and finds the answer in the log, or begins itself if there is none.

No cycle of waiting: a node waits only for one that works, or for a lower id; who waits is in nobody's way. A peer that
does not answer is not waited for: then, as in a partition, both sides may go on, and one of two branches loses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from node.errors import ConclaveError
from node.mesh.peer import Peer

log = logging.getLogger(__name__)

CLAIM_S = 0.25  # as long as newer turns are waited for
WAIT_S = 600.0  # for another node's turn, where the client sets no deadline
ROUNDS = 4  # a peer that says for ever that it is at work is not believed for ever
MAX_NOTED = 4096  # requests; a client that asks elsewhere does so within seconds
MAX_GIVEN = 16  # nodes that one request was given


class _State(Enum):
    CLAIMS = 1
    WAITS = 2
    WORKS = 3


@dataclass(slots=True)
class Claim:
    """A request that this node was given. `yields` are nodes that claim it too and go first."""

    id: str
    state: _State = _State.CLAIMS
    yields: set[str] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Claims:
    """The requests with topics that this node was given and has not answered yet."""

    def __init__(self, node_id: str) -> None:
        self._id = node_id
        self._claims: dict[str, Claim] = {}
        self._noted: OrderedDict[str, list[str]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def claim(self, request_id: str) -> AsyncIterator[Claim]:
        """A claim for as long as the block runs. Of one request, one at a time on this node."""
        made = self._claims[request_id] = Claim(request_id)
        self.note(request_id, self._id)
        try:
            yield made
        finally:
            del self._claims[request_id]
            made.ended.set()

    def note(self, request_id: str, node: str) -> list[str]:
        """A node was given a request: which others were, as far as we know."""
        noted = self._noted.setdefault(request_id, [])
        if node not in noted and len(noted) < MAX_GIVEN:
            noted.append(node)
        while len(self._noted) > MAX_NOTED:
            self._noted.popitem(last=False)
        return [each for each in noted if each != node]

    async def answer(self, request_id: str, caller: str, waits: bool) -> bool:
        """Another node's claim: whether it must wait for us. With `waits`, answered when that is over."""
        found = self._claims.get(request_id)
        if found is None or found.state is _State.WAITS:
            return False
        if found.state is _State.CLAIMS and caller < self._id:
            found.yields.add(caller)
            return False
        if waits:
            await found.ended.wait()
            return False
        return True

    async def first(self, claim: Claim, given: Collection[str], peers: Sequence[Peer]) -> Peer | None:
        """Claim a request at those of the peers that were given it too: who goes first; None if it is us, who are at
        work from here on."""
        claim.state = _State.CLAIMS
        asked = [peer for peer in peers if peer.id in given]
        said = await asyncio.gather(*(self._ask(peer, claim.id) for peer in asked))
        busy = {peer.id for peer, must_wait in zip(asked, said, strict=True) if must_wait}
        ahead = [peer for peer in peers if peer.id in busy | claim.yields]
        claim.yields.clear()
        claim.state = _State.WAITS if ahead else _State.WORKS
        return ahead[0] if ahead else None

    async def wait(self, claim: Claim, peer: Peer, timeout_s: float | None) -> None:
        """Wait until a peer is done with a request, or is gone."""
        with contextlib.suppress(ConclaveError):
            await peer.claim(claim.id, waits=True, timeout_s=WAIT_S if timeout_s is None else timeout_s)

    async def _ask(self, peer: Peer, request_id: str) -> bool:
        try:
            return await peer.claim(request_id, waits=False, timeout_s=CLAIM_S)
        except ConclaveError as e:
            log.info("node %s did not say whether it is at work on request %s: %s", peer.id, request_id, e)
            return False
