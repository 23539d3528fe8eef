"""Meeting other nodes. One rule makes a peer: we called it, its certificate names it, it answered our Hello.

Announcements, news and calls from others are reasons to call, never more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from node.address import is_address, split_address
from node.core.members import Alive
from node.errors import ConclaveError, InvalidRequest, PeerUnavailable, Unauthenticated
from node.mesh import overlap
from node.mesh.dials import Dials
from node.mesh.discovery import Found
from node.mesh.foreign import Foreign
from node.mesh.identity import MOST_S, NODE_ID
from node.mesh.interfaces import came_from
from node.mesh.peer import Peer
from node.mesh.roster import PROTOCOL, Roster, checked
from node.types import NodeInfo, NodeState
from node.v1 import mesh_pb2

HELLO_S = 2.0
FIRST_S = 1.0  # for who was announced and not called before: most silent ones are gone, and others wait behind them
MAX_PURSUED = 512  # Anybody can announce nodes; those that call us or that peers tell of are called all the same.
RETRIES_S = (
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    15.0,
    30.0,
)  # For what was announced; then it is given up until it is again.
JOIN_RETRY_S = 2.0  # For what we were told to join: for ever.
FOREIGN_S = 1.0
FOREIGN_TRIES = 3  # connections that are tried; a machine may stand still for a moment
MAX_FOREIGN = 64  # so many at a time: strangers announce what they like
LOOK_S = 5.0  # How often nodes of other meshes are looked for where they were: a connection each, to one of each mesh.
DIAL_S = 2.0
FAILED_S = 600.0  # Why a node that was announced could not be called; so long after the last try it says nothing.
RENEW_S = 3600.0  # A connection is made anew when its certificate has less to live, so a reconnect never fails by it.

_log = logging.getLogger(__name__)


class Caller:
    """Calls the nodes that somebody says exist, and makes them peers of the roster."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._pursued: dict[str, asyncio.Task[None]] = {}
        self._called_us: dict[str, float] = {}
        self._dials = Dials()
        self._others = Foreign()
        self._told_of: set[str] = set()
        self._looked_at: set[Found] = set()  # those of other meshes of which it is not known yet whether they answer
        roster.strangers = lambda info: self.pursue(info.id, [info.address], moved=roster.is_met(info.id))

    # ---- reasons to call ----

    def found(self, found: Found) -> None:
        """A node was announced, by mDNS or on this machine."""
        roster = self._roster
        if found.mesh_id not in roster.identity.mesh_ids():
            roster.spawn(self._foreign(found))
        elif roster.info().address not in found.addresses and len(self._pursued) < MAX_PURSUED:
            self.pursue(found.node_id, found.addresses)

    async def _foreign(self, found: Found) -> None:
        """A node of another mesh; it may turn out to be ours, when somebody tells us that its token was replaced."""
        await asyncio.sleep(FOREIGN_S)
        if found.mesh_id in self._roster.identity.mesh_ids():
            self.found(found)
            return
        # An announcement outlives who was killed by an hour, and is heard again meanwhile: only who answers is told of.
        if found in self._looked_at or len(self._looked_at) >= MAX_FOREIGN:
            return
        self._looked_at.add(found)
        try:
            for _ in range(FOREIGN_TRIES):
                if await self._answers(found):
                    self._others.see(found, time.monotonic())
                    self._say_foreign()
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            self._looked_at.discard(found)

    async def look_at_foreign(self) -> None:
        """Looks, a while later, whether the other meshes are still there: nobody says goodbye for who was killed."""
        await asyncio.sleep(LOOK_S)
        ours = self._roster.identity.mesh_ids()
        for mesh, found in self._others.meshes().items():
            if mesh in ours:  # somebody told us that its token was replaced
                self._others.met(found.node_id, "")
                self.found(found)
        await asyncio.gather(*(self._look(found) for found in self._others.meshes().values()))
        self._say_foreign()

    async def _look(self, found: Found) -> None:
        if await self._answers(found):
            self._others.answered(found.node_id, time.monotonic())
        else:
            self._others.missed(found.node_id, time.monotonic())

    async def _answers(self, found: Found) -> bool:
        """Whether something listens where a node says that it is."""
        for address in found.addresses:
            host, port = split_address(address) or ("", 0)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DIAL_S):
                    _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return True
        return False

    def _say_foreign(self) -> None:
        meshes = self._others.meshes()
        self._roster.unsay(*(f"mesh {mesh}" for mesh in self._told_of - set(meshes)))
        self._told_of = set(meshes)
        for mesh, found in meshes.items():
            self._roster.say(
                f"another mesh ({mesh}) is here, at {', '.join(found.addresses[:1])}: to join it, run "
                "`python -m node pair` there, then here, or start this node with --token and what "
                "`python -m node token show` prints there",
                key=f"mesh {mesh}",
            )

    def heard(self, info: NodeInfo, source: str = "") -> None:
        """A node called us, which proves that it lives, but not that we can call it. `source` is where the call came
        from, as gRPC names it."""
        roster = self._roster
        held = roster.members.get(info.id)
        gone = held is not None and roster.members.has_left(info.id) and info.incarnation <= held.incarnation
        if info.id == roster.id or gone:
            return
        if held is None or held.state is NodeState.DEAD or info.id not in roster.peers:
            seen = came_from(source, info.address)
            self.pursue(info.id, list(dict.fromkeys([info.address, seen or info.address])), caller=True)
            if info.id in self._pursued:  # what ends with the pursuit is noted only where there is one
                self._called_us[info.id] = time.monotonic()
            return
        roster.apply(Alive(info, direct=True))
        if held.address != info.address:
            self.pursue(info.id, [info.address], moved=True)

    async def join(self, address: str) -> None:
        """Keeps us joined to whoever is at an address we were told, until cancelled."""
        roster, pause, failures = self._roster, 0.25, 0
        while True:
            try:
                met = await self.meet(address, failures=failures)
                if met == roster.id:
                    roster.say(f"--join {address} is this node itself: give the address of another one")
                    return
                roster.unsay(f"join {address}")
                pause, failures = 0.25, 0
                while roster.is_met(met):  # noqa: ASYNC110  # a second later is soon enough to call again
                    await asyncio.sleep(1.0)
            except Unauthenticated as e:
                roster.say(e.message, key=f"join {address}")
            except ConclaveError as e:
                roster.say(f"{e.message}; trying again until it answers", key=f"join {address}")
            failures += 1
            await asyncio.sleep(pause * roster.rng.uniform(0.8, 1.2))
            pause = min(pause * 2, JOIN_RETRY_S)

    def again(self) -> None:
        """Makes every connection anew: this machine's address changed, so whatever still comes goes astray."""
        for id, peer in list(self._roster.peers.items()):
            self.pursue(id, [peer.address], moved=True)

    def renew(self) -> None:
        """Makes those connections anew whose certificate is about to end; call it every minute or so."""
        for id, peer in list(self._roster.peers.items()):
            if not RENEW_S <= peer.expires - time.time() <= MOST_S:  # more: the clock was set back since
                self.pursue(id, [peer.address], moved=True)

    def pursue(self, node_id: str, addresses: Sequence[str], *, moved: bool = False, caller: bool = False) -> None:
        """Calls a node that is said to be at `addresses` until it answers, a limited number of times.

        `moved`: even if we have a connection; `caller`: it called us, so a person should know if we cannot call it.
        """
        roster = self._roster
        usable = [a for a in addresses if is_address(a)]
        if not usable or roster.stopping or node_id in self._pursued or (roster.is_met(node_id) and not moved):
            return
        task = roster.spawn(self._call_until_met(node_id, usable, moved, caller))
        self._pursued[node_id] = task
        task.add_done_callback(lambda _: (self._pursued.pop(node_id, None), self._called_us.pop(node_id, None)))

    async def _call_until_met(self, node_id: str, addresses: Sequence[str], moved: bool, caller: bool) -> None:
        roster, started = self._roster, time.monotonic()
        for failures, pause in enumerate((*RETRIES_S, 0.0)):
            for address in addresses:
                try:
                    await self.meet(address, node_id, failures=failures, timeout_s=HELLO_S if failures else FIRST_S)
                    return
                except Unauthenticated as e:
                    roster.say(e.message, key=f"call {address}", lasts_s=FAILED_S)
                except ConclaveError as e:
                    _log.debug("calling node %s at %s: %s", node_id, address, e.message)
            await asyncio.sleep(pause * roster.rng.uniform(0.8, 1.2))
            if (roster.is_met(node_id) and not moved) or roster.members.has_left(node_id):
                return
            if caller and self._called_us.get(node_id, 0.0) > started + 1.0:
                roster.say(
                    f"node {node_id} can call this node, but not be called at {addresses[0]}: open that port in its "
                    "firewall",
                    key=f"caller {node_id}",
                    lasts_s=FAILED_S,
                )

    # ---- calling ----

    async def meet(self, address: str, node_id: str = "", *, failures: int = 0, timeout_s: float = HELLO_S) -> str:
        """Calls the node at an address, by id if it is known, and makes it a peer. Returns its id. `failures` are those
        of earlier calls: who never failed goes first.

        Raises PeerUnavailable, Unauthenticated, or what the node itself answers.
        """
        roster = self._roster
        also = overlap.told(roster.identity.overlap())
        hello = mesh_pb2.HelloRequest(node=roster.me(), protocol=PROTOCOL, overlap=also)
        if not node_id:
            node_id = await self._who(address, hello, failures)
            if roster.is_met(node_id) or node_id == roster.id:
                return node_id
        peer = Peer(roster.identity, address, node_id, roster.suspect, roster.freed)
        try:
            async with self._dials.place(failures):
                answer = await peer.hello(hello, timeout_s)
            await self._admit(peer, answer)
        except BaseException:
            if roster.peers.get(node_id) is peer:
                del roster.peers[node_id]
            await peer.close()
            raise
        return node_id

    async def _who(self, address: str, hello: mesh_pb2.HelloRequest, failures: int) -> str:
        """The id of whoever answers. It proves no more than that it is of our mesh, so it is called again by its id."""
        async with self._dials.place(failures):
            stranger = Peer(self._roster.identity, address)
            try:
                answer = await stranger.hello(hello, HELLO_S)
            finally:
                await stranger.close()
        if not NODE_ID.fullmatch(answer.node.id):
            raise PeerUnavailable(f"{address} answers as {answer.node.id[:64]!r}, which is no node id")
        return answer.node.id

    async def _admit(self, peer: Peer, answer: mesh_pb2.HelloResponse) -> None:
        roster = self._roster
        info = checked(answer.node)
        if info is None or info.id != peer.id or answer.protocol != PROTOCOL:
            raise PeerUnavailable(
                f"{peer.address} speaks protocol {answer.protocol}, this node {PROTOCOL}: install the same version"
            )
        if info.id == roster.id:
            if info.address != roster.info().address:
                roster.say(self._clone(info.address), key=f"clone {info.address}", lasts_s=FAILED_S)
            await peer.close()
            return
        roster.identity.learn(answer.overlap)
        old = roster.peers.get(peer.id)
        roster.peers[peer.id] = peer
        if old is not None:
            await old.close(grace=60.0 if roster.is_alive(peer.id) else None)
        roster.apply(Alive(info, direct=True))
        # The probe measures the round trip. And if we hold it for dead, it tells it so, and its answer refutes that.
        roster.answered(peer.id, await peer.probe(roster.probe_request(peer.id), 4 * roster.timeout_s))
        if not roster.is_alive(peer.id):
            raise PeerUnavailable(f"node {peer.id} at {peer.address} did not take back that it is dead")
        roster.hear(answer.peers, peer.id)
        roster.unsay(
            f"caller {peer.id}", *(f"{why} {a}" for why in ("call", "clone") for a in (peer.address, info.address))
        )
        self._others.met(peer.id, info.address)
        self._say_foreign()

    # ---- two nodes with one id ----

    async def refuse_clone(self, info: NodeInfo) -> None:
        """Raises InvalidRequest if another node with the caller's id lives at another address."""
        roster = self._roster
        if info.id == roster.id:
            if info.address == roster.info().address:
                return  # We called ourselves, through some other name of this machine.
            roster.say(self._clone(info.address), key=f"clone {info.address}", lasts_s=FAILED_S)
            raise InvalidRequest(self._clone(roster.info().address))
        held, peer = roster.members.get(info.id), roster.peers.get(info.id)
        if held is None or peer is None or held.state is NodeState.DEAD or held.address == info.address:
            return
        try:
            answer = await peer.probe(roster.probe_request(info.id), roster.timeout_s)
        except ConclaveError:
            return  # It moved: nobody is at the old address.
        if answer.node.address != info.address:
            raise InvalidRequest(
                f"node id {info.id} is in use at {held.address} already: was the data directory copied? "
                "Remove the file node_id in the copy"
            )

    def _clone(self, address: str) -> str:
        return (
            f"another node, at {address}, has this node's id {self._roster.id}: was the data directory copied? "
            "Remove the file node_id in the copy and start that node again"
        )
