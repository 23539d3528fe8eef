"""Finding out who is alive: carries out what `node.core.members` says is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from node.core.members import Failed, Tick
from node.errors import ConclaveError, PeerUnavailable
from node.mesh.caller import Caller
from node.mesh.peer import Peer
from node.mesh.roster import Roster
from node.types import NodeInfo, NodeState
from node.v1 import mesh_pb2

TICK_S = 0.1
QUIET_TICK_S = 0.25  # Each wake of an idle node costs it 0.1 ms or so, and there are peers to look at.
STALL_S = 0.25  # A tick that came so late says that this process could not run, so its timeouts prove nothing.
RENEW_S = 60.0

_log = logging.getLogger(__name__)


class Prober:
    """The probing of one node."""

    def __init__(self, roster: Roster, caller: Caller) -> None:
        self._roster = roster
        self._caller = caller
        self._probing: set[str] = set()
        self._stalled_at = self._renew_at = 0.0

    async def run(self) -> None:
        """Probes, gossips and reconnects until cancelled."""
        await self._roster.keep_on(self._beat, "probes")

    async def _beat(self) -> None:
        roster, members = self._roster, self._roster.members
        now = time.monotonic()
        roster.apply(Tick())
        for id, peer in roster.peers.items():
            if peer.lost():
                members.check(id)
        due = members.due(now)
        for id in due.probe:
            roster.spawn(self._probe(id))
        for id in due.gossip:
            roster.spawn(self._gossip(id))
        for id in due.reconnect:
            if (held := members.get(id)) is not None:
                roster.spawn(self._reconnect(held))
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self._caller.renew()
        roster.wake.clear()
        tick = QUIET_TICK_S if members.is_quiet else TICK_S
        # Not wait_for: that of Python 3.11 swallows a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(tick):
                await roster.wake.wait()
        late = time.monotonic() - now - tick
        if late > STALL_S:
            self._stalled_at = time.monotonic()
            members.stalled(late)

    async def relay(self, target: str) -> mesh_pb2.ProbeResponse:
        """Probes `target` on another node's behalf; `alive` and `node` of the answer say what came of it."""
        peer = self._roster.peers.get(target)
        try:
            if peer is None:
                raise PeerUnavailable("not a peer of ours")
            # Less than the asker's patience, so that it hears of it.
            answer = await peer.probe(self._roster.probe_request(target), 0.8 * self._roster.timeout_s)
        except ConclaveError:
            self._roster.suspect(target)  # What we found, we can bear witness to.
            return mesh_pb2.ProbeResponse(alive=False)
        self._roster.answered(target, answer)
        return mesh_pb2.ProbeResponse(node=answer.node, alive=True)

    async def _probe(self, id: str) -> None:
        """One direct probe, then indirect ones; tells the members what came of it."""
        roster = self._roster
        peer, held = roster.peers.get(id), roster.members.get(id)
        if held is None or id in self._probing:
            return
        self._probing.add(id)
        started = time.monotonic()
        try:
            try:
                if peer is None:  # Others say that it lives: calling it is the probe.
                    async with asyncio.timeout(roster.timeout_s):
                        await self._caller.meet(held.address, id)
                else:
                    roster.answered(id, await peer.probe(roster.probe_request(id), roster.timeout_s))
                return
            except (ConclaveError, TimeoutError) as e:
                _log.debug("probing node %s: %s", id, e)
            held = roster.members.get(id)
            # Of a suspect others have found already that no other path leads to it.
            suspected = held is not None and held.state is NodeState.SUSPECT
            helpers = [] if suspected else [roster.peers[h] for h in roster.members.helpers(id) if h in roster.peers]
            if helpers and any(await asyncio.gather(*(self._ask(h, id) for h in helpers))):
                return
            if self._stalled_at >= started:
                roster.members.check(id)
            elif roster.peers.get(id) is peer:
                roster.apply(Failed(id))
        finally:
            self._probing.discard(id)

    async def _ask(self, helper: Peer, target: str) -> bool:
        """An indirect probe of `target` by `helper`: whether it answered."""
        request = self._roster.probe_request(helper.id)
        request.target = target
        try:
            answer = await helper.probe(request, self._roster.timeout_s)
        except ConclaveError:
            return False
        self._roster.hear(answer.news, helper.id)
        if answer.alive:
            self._roster.answered(target, mesh_pb2.ProbeResponse(node=answer.node))
        return answer.alive

    async def _gossip(self, id: str) -> None:
        peer = self._roster.peers.get(id)
        if peer is None or id in self._probing:
            return
        try:
            answer = await peer.probe(self._roster.probe_request(id), self._roster.timeout_s)
        except ConclaveError:
            self._roster.suspect(id)
        else:
            self._roster.answered(id, answer)

    async def _reconnect(self, held: NodeInfo) -> None:
        with contextlib.suppress(ConclaveError):
            await self._caller.meet(held.address, held.id, failures=1)  # it is held for dead
