"""Who lends memory, how a model is spread over them, and the loans that were taken."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node import wire
from node.core.shape import Shape
from node.core.spread import GIB, Offer, Share, spread
from node.errors import ConclaveError, NotFound, PeerUnavailable
from node.mesh import local
from node.mesh.discovery import Discovery, Found
from node.mesh.identity import Identity
from node.mesh.peer import Peer
from node.pool.loan import Loan
from node.types import NodeInfo
from node.v1 import mesh_pb2

LOOK_S = 2.0  # a node answers mDNS in 0.12 s
WAIT_S = 20.0  # machines that are started together are not ready together
ASK_S = 3.0
MOST_NODES = 64
REFUSED_S = 10.0  # a node that did not keep what it offers is left out for so long: it may be dead, and not yet missed


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model to be spread: its shape and how it is loaded, and the bytes that it may take `here`. `even`: over all
    nodes in equal parts, though it may fit here."""

    shape: Shape
    cells: int
    sequences: int
    kv_type: str
    here: int
    even: bool = False


class Borrower:
    """Borrows for one model. `join` and `interfaces` are the node's options, `runtime` is where nodes of this machine
    meet.

    `tell` hears of what was planned and of why it takes a while; `lost` hears, once, what of a model that is spread is
    gone: it cannot go on.
    """

    def __init__(
        self,
        identity: Identity,
        version: str,
        *,
        join: str,
        runtime: Path,
        interfaces: Sequence[str],
        tell: Callable[[str], None],
        lost: Callable[[ConclaveError], None],
    ) -> None:
        self._identity = identity
        self._version = version
        self._words = [word.strip() for word in join.split(",")]
        self._runtime = runtime
        self._interfaces = interfaces
        self._tell = tell
        self._lost = lost
        self._loans: list[tuple[Share, Loan]] = []
        self._refused: dict[str, float] = {}  # until when
        self.shares: tuple[Share, ...] = ()

    async def borrow(self, wanted: Wanted, within_s: float = WAIT_S) -> tuple[tuple[str, int], ...]:
        """(127.0.0.1:PORT, layers) of each lender, in the order of the layers. Raises NotFound if what is lent within
        that time does not suffice.

        Who offers memory and does not give it is left out, and the model planned anew without it.
        """
        while True:
            self.shares, lenders = await self._plan(wanted, within_s)
            if (found := await self._take(lenders)) is not None:
                self._tell("the model is spread: " + "; ".join(str(share) for share in self.shares))
                return found

    async def _take(self, lenders: Mapping[str, NodeInfo]) -> tuple[tuple[str, int], ...] | None:
        """The loans of a plan; None, and none of them, if a lender does not give its part."""
        found = []
        try:
            for share in self.shares[1:]:
                lender = lenders[share.node]
                peer = Peer(self._identity, lender.address, lender.id)
                loan = Loan(peer, share.bytes, self._version, lambda e, share=share: self._gone(share, e))  # type: ignore[misc]
                self._loans.append((share, loan))
                try:
                    found.append((await loan.open(), share.layers))
                except ConclaveError as e:
                    self._tell(f"{share.name} is left out: {e.message}")
                    self._refused[share.node] = time.monotonic() + REFUSED_S
                    self.shares = ()
                    await self.close()
                    return None
        except BaseException:
            await self.close()
            raise
        return tuple(found)

    async def close(self) -> None:
        """Give everything back."""
        loans, self._loans = self._loans, []
        await asyncio.gather(*(loan.close() for _, loan in loans), return_exceptions=True)

    def _gone(self, share: Share, error: ConclaveError) -> None:
        if self._loans:
            self._lost(
                PeerUnavailable(f"{share.name}, which held {share.which} of the model, is gone ({error.message})")
            )

    # ---- who lends --------------------------------------------------------------------------------------------------

    async def _plan(self, wanted: Wanted, within_s: float) -> tuple[tuple[Share, ...], dict[str, NodeInfo]]:
        """The spread over who lends now; looks again for a while if that is not enough."""
        started, looks = time.monotonic(), 0
        while True:
            # First those that are known without looking: whoever answers knows all others.
            nodes = await self._ask_all(await self._look() if looks else self._known())
            now = time.monotonic()
            lenders = {
                n.id: n
                for n in nodes
                if n.lends_bytes and n.lent_to in ("", self._identity.node_id) and self._refused.get(n.id, 0.0) <= now
            }
            offers = [Offer(n.id, n.name or n.id, n.lends_bytes) for n in lenders.values()]
            made = spread(
                wanted.shape, wanted.cells, wanted.sequences, wanted.kv_type, wanted.here, offers, even=wanted.even
            )
            if len(made) > 1 or (made and not wanted.even):
                return made, lenders
            lent = sum(o.bytes for o in offers) / GIB
            if self._words == ["none"] or now - started > within_s:
                raise NotFound(
                    f"{wanted.shape.name} does not fit: this machine may use {wanted.here / GIB:.1f} GiB for it, and "
                    f"{len(offers)} nodes lend {lent:.1f} GiB; start more nodes with --pool, or take a smaller model"
                )
            if looks == 1:
                self._tell(f"{len(offers)} nodes lend {lent:.1f} GiB of memory, too little: looking for more")
            looks += 1

    def _known(self) -> dict[str, str]:
        """Where nodes are that need not be looked for: address -> the id that is expected there; empty: any."""
        places = {word: "" for word in self._words if word not in ("auto", "none")}
        if "auto" in self._words:
            for node in local.running_nodes(self._runtime):
                if node.mesh_id in self._identity.mesh_ids():
                    places[node.mesh_address] = node.node_id
        return places

    async def _look(self) -> dict[str, str]:
        """The same, and who is found on the network within `LOOK_S`."""
        places = self._known()

        def found(each: Found) -> None:
            if each.mesh_id in self._identity.mesh_ids() and len(places) < MOST_NODES:
                places.update(dict.fromkeys(each.addresses, each.node_id))

        if "auto" not in self._words:
            await asyncio.sleep(LOOK_S)
            return places
        discovery = Discovery(self._identity.node_id, self._identity.mesh_id, 0, found, interfaces=self._interfaces)
        try:
            await discovery.start()
            await asyncio.sleep(LOOK_S)
        finally:
            await discovery.stop()
        return places

    async def _ask_all(self, places: Mapping[str, str]) -> list[NodeInfo]:
        """All nodes of the mesh, each as somebody who answers describes it."""
        answers = await asyncio.gather(*(self._ask(address, node) for address, node in places.items()))
        nodes: dict[str, NodeInfo] = {}
        for address, answer in zip(places, answers, strict=True):
            for i, info in enumerate(answer):
                if i == 0:  # the one that was asked: it knows itself best, and this address leads there
                    nodes[info.id] = replace(info, address=address)
                else:
                    nodes.setdefault(info.id, info)
        nodes.pop(self._identity.node_id, None)
        return list(nodes.values())

    async def _ask(self, address: str, node: str) -> list[NodeInfo]:
        peer = Peer(self._identity, address, node)
        try:
            with contextlib.suppress(ConclaveError):
                status = await peer.call(peer.mesh.Status, mesh_pb2.StatusRequest(), ASK_S)
                return [wire.node_info(n) for n in status.nodes[:MOST_NODES]]
            return []
        finally:
            await peer.close()
