"""The mesh as one node sees it: meeting others, keeping track of who is alive, and telling who asks.

`node.core.members` decides; this carries it out. What makes a peer is one rule: we called it, its certificate names it,
it answered our Hello. Announcements, news and Hellos from others are reasons to call, never more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from node import wire
from node.core.members import Alive, Change, Dead, Failed, Kind, Members, Settings, Tick
from node.errors import ConclaveError, InvalidRequest, NotFound, NotReady, PeerUnavailable, Unauthenticated
from node.mesh import local
from node.mesh.discovery import Discovery, Found
from node.mesh.identity import NODE_ID, Identity
from node.mesh.peer import Peer, is_address
from node.types import NodeInfo, NodeState
from node.v1 import mesh_pb2, types_pb2

PROTOCOL = 1
TICK_S = 0.1
STALL_S = 0.25  # A tick that came so late says that this process could not run, so its timeouts prove nothing.
MAX_NEWS = 256  # Entries of one message that are looked at.
MAX_CALLING = 8  # Connections that are made at a time: a handshake costs about 5 ms of CPU.
MAX_NOTICES = 50
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
GOODBYE_S = 0.5
RENEW_S = 3600.0  # A connection is made anew when its certificate has less to live, so a reconnect never fails by it.

_log = logging.getLogger(__name__)


class Mesh:
    """Membership and connections of one node.

    `self_info` describes this node whenever asked; its `address` must be what others can dial. `runtime` is the
    directory of `node.home` where nodes of this machine meet (None: not used), `interfaces` the local IPs for mDNS
    (empty: all), `mdns` whether to use it under `join="auto"`. `notice` is told, once, each line that a person should
    see; `notices` keeps them.
    """

    def __init__(
        self,
        identity: Identity,
        self_info: Callable[[], NodeInfo],
        *,
        runtime: Path | None = None,
        interfaces: Sequence[str] = (),
        mdns: bool = True,
        settings: Settings | None = None,
        notice: Callable[[str], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        self.id = identity.node_id
        self.mesh_id = identity.mesh_id
        self.notices: list[str] = []
        self._identity = identity
        self._self_info = self_info
        self._runtime = runtime
        self._interfaces = interfaces
        self._mdns = mdns
        self._notice = notice
        self._rng = rng or random.Random()
        # Milliseconds of wall clock: higher at each start, so whatever is still said of our former life is old news.
        self._members = Members(self.id, self._rng, settings, incarnation=int(time.time() * 1000))
        self._peers: dict[str, Peer] = {}
        self._callbacks: list[Callable[[Change], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pursued: dict[str, asyncio.Task[Any]] = {}
        self._probing: set[str] = set()
        self._said: set[str] = set()
        self._calling = asyncio.Semaphore(MAX_CALLING)
        self._wake = asyncio.Event()
        self._stalled_at = 0.0
        self._discovery: Discovery | None = None
        self._presence: local.Presence | None = None
        self._stopping = False

    # ---- for the other layers ------------------------------------------------------------------------------------

    async def start(self, join: str | Sequence[str] = "auto") -> None:
        """Begins to look for peers: "auto", "none", or HOST:PORT addresses (comma-separated or a sequence).

        The mesh listener must serve already. With "none" no one is looked for, but others may join us. Nothing here
        waits for a peer or fails for want of one; see `notices`. Raises InvalidRequest for a malformed address.
        """
        addresses = [a.strip() for a in (join.split(",") if isinstance(join, str) else join)]
        for address in addresses:
            if address not in ("auto", "none") and not is_address(address):
                raise InvalidRequest(f"--join {address!r} is not an address: write HOST:PORT, or auto, or none")
        self._spawn(self._run())
        auto = "auto" in addresses
        if self._runtime is not None:
            self._meet_here(self._runtime, look=auto)
        for address in addresses:
            if address not in ("auto", "none"):
                self._spawn(self._join(address))
        if auto and self._mdns:
            await self._announce()

    async def stop(self) -> None:
        """Leaves: withdraws announcements, says goodbye to the peers (at most half a second), closes everything."""
        if self._stopping:
            return
        self._stopping = True
        if self._presence is not None:
            self._presence.withdraw()
        goodbye = mesh_pb2.HelloRequest(node=self._me(), protocol=PROTOCOL, leaving=True)
        discovery = [self._discovery.stop()] if self._discovery is not None else []
        await asyncio.gather(
            *discovery, *(p.hello(goodbye, GOODBYE_S) for p in self._peers.values()), return_exceptions=True
        )
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(p.close() for p in self._peers.values()), return_exceptions=True)
        self._peers.clear()

    def peers(self) -> list[Peer]:
        """The peers that are alive (not suspected), by id, with what they last said of themselves."""
        out = []
        for info in self._members.alive():
            peer = self._peers.get(info.id)
            if peer is not None:
                peer.info = replace(info, round_trip_ms=peer.round_trip_ms)
                out.append(peer)
        return out

    def peer(self, node_id: str) -> Peer:
        """One peer that is alive. Raises NotFound."""
        for peer in self.peers():
            if peer.id == node_id:
                return peer
        raise NotFound(f"no peer {node_id!r} is alive: `python -m node status` lists those that are")

    def nodes(self) -> list[NodeInfo]:
        """All nodes that are remembered, this one first, each with its state; those that left are not among them."""
        others = [
            replace(i, round_trip_ms=self._peers[i.id].round_trip_ms) if i.id in self._peers else i
            for i in self._members.all()
            if not self._members.has_left(i.id)
        ]
        return [self._info(), *others]

    def on_change(self, callback: Callable[[Change], None]) -> None:
        """Has `callback` called with each change of the membership, on the event loop."""
        self._callbacks.append(callback)

    def suspect(self, node_id: str) -> None:
        """Something spoke against a peer (a broken stream): it is probed at once."""
        self._members.check(node_id)
        self._wake.set()

    # ---- what peers ask us (called by the mesh listener) ---------------------------------------------------------

    async def hello(self, request: mesh_pb2.HelloRequest, peer_identity: str) -> mesh_pb2.HelloResponse:
        """Mesh.Hello. `peer_identity` is the node id in the caller's certificate (`identity.peer_id`).

        Raises Unauthenticated if it is not the id that is said, InvalidRequest for another protocol or an id that
        is in use elsewhere, NotReady while stopping.
        """
        if self._stopping:
            raise NotReady(f"node {self.id} is stopping")
        info = self._caller(request.node, peer_identity)
        if request.protocol != PROTOCOL:
            raise InvalidRequest(
                f"node {self.id} speaks protocol {PROTOCOL}, the caller {request.protocol}: install the same version"
            )
        if request.leaving:
            self._apply(Dead(info.id, info.incarnation, left=True))
            return mesh_pb2.HelloResponse(node=self._me(), protocol=PROTOCOL)
        await self._refuse_clone(info)
        self._heard(info)
        known = [wire.node_info_pb(i) for i in self._members.alive() if i.id != info.id]
        return mesh_pb2.HelloResponse(node=self._me(), peers=known[:MAX_NEWS], protocol=PROTOCOL)

    async def probe(self, request: mesh_pb2.ProbeRequest, peer_identity: str) -> mesh_pb2.ProbeResponse:
        """Mesh.Probe: a sign of life, or one of `target` on the caller's behalf. Raises Unauthenticated.

        Answered to the end, so that peers hear our goodbye before they miss us.
        """
        info = self._caller(request.node, peer_identity)
        self._heard(info)
        self._hear(request.news, info.id, inbound=True)
        if request.target and request.target != self.id:
            target = self._peers.get(request.target)
            try:
                if target is None:
                    raise PeerUnavailable("not a peer of ours")
                answer = await target.probe(self._probe_request(request.target), 0.8 * self._members.settings.timeout_s)
            except ConclaveError:
                self.suspect(request.target)  # What we found, we can bear witness to.
                return mesh_pb2.ProbeResponse(alive=False, news=self._news(info.id))
            self._answered(request.target, answer)
            return mesh_pb2.ProbeResponse(node=answer.node, alive=True, news=self._news(info.id))
        return mesh_pb2.ProbeResponse(node=self._me(), alive=True, news=self._news(info.id))

    def _caller(self, pb: types_pb2.NodeInfo, peer_identity: str) -> NodeInfo:
        info = _checked(pb)
        if info is None or info.id != peer_identity:
            raise Unauthenticated(f"the caller says it is node {pb.id[:64]!r}, its certificate says {peer_identity!r}")
        return info

    async def _refuse_clone(self, info: NodeInfo) -> None:
        """Raises InvalidRequest if another node with this id lives at another address."""
        if info.id == self.id:
            if info.address == self._info().address:
                return  # We called ourselves, through some other name of this machine.
            self._say(self._clone(info.address))
            raise InvalidRequest(self._clone(self._info().address))
        held, peer = self._members.get(info.id), self._peers.get(info.id)
        if held is None or peer is None or held.state is NodeState.DEAD or held.address == info.address:
            return
        try:
            answer = await peer.probe(self._probe_request(info.id), self._members.settings.timeout_s)
        except ConclaveError:
            return  # It moved: nobody is at the old address.
        if answer.node.address != info.address:
            raise InvalidRequest(
                f"node id {info.id} is in use at {held.address} already: was the data directory copied? "
                "Remove the file node_id in the copy"
            )

    def _clone(self, address: str) -> str:
        return (
            f"another node, at {address}, has this node's id {self.id}: was the data directory copied? "
            "Remove the file node_id in the copy and start that node again"
        )

    # ---- meeting -------------------------------------------------------------------------------------------------

    def _heard(self, info: NodeInfo) -> None:
        """A node called us, which proves that it lives, but not that we can call it."""
        if info.id == self.id:
            return
        held = self._members.get(info.id)
        if held is None or held.state is NodeState.DEAD or info.id not in self._peers:
            self._pursue(info.id, [info.address], caller=True)
            return
        self._apply(Alive(info, direct=True))
        if held.address != info.address:
            self._pursue(info.id, [info.address], moved=True)

    def _pursue(self, node_id: str, addresses: Sequence[str], *, moved: bool = False, caller: bool = False) -> None:
        """Calls a node that is said to be at `addresses` until it answers, a limited number of times.

        `moved`: even if we have a connection; `caller`: it called us, so a person should know if we cannot call it.
        """
        usable = [a for a in addresses if is_address(a)]
        if usable and not self._stopping and node_id not in self._pursued and (moved or not self._is_alive(node_id)):
            task = self._spawn(self._call_until_met(node_id, usable, moved, caller))
            self._pursued[node_id] = task
            task.add_done_callback(lambda _: self._pursued.pop(node_id, None))

    async def _call_until_met(self, node_id: str, addresses: Sequence[str], moved: bool, caller: bool) -> None:
        for pause in (*RETRIES_S, 0.0):
            for address in addresses:
                try:
                    await self._meet(address, node_id)
                    return
                except Unauthenticated as e:
                    self._say(e.message)
                except ConclaveError as e:
                    _log.debug("calling node %s at %s: %s", node_id, address, e.message)
            await asyncio.sleep(pause * self._rng.uniform(0.8, 1.2))
            if self._is_alive(node_id) and not moved:
                return
            if caller and pause >= 1.0:
                self._say(
                    f"node {node_id} can call this node, but not be called at {addresses[0]}: open that port in its "
                    "firewall",
                    key=f"caller {node_id}",
                )

    async def _join(self, address: str) -> None:
        """Keeps us joined to whoever is at an address we were told."""
        pause = 0.25
        while True:
            try:
                met = await self._meet(address)
                if met == self.id:
                    self._say(f"--join {address} is this node itself: give the address of another one")
                    return
                pause = 0.25
                while self._is_alive(met):  # noqa: ASYNC110  # a second later is soon enough to call again
                    await asyncio.sleep(1.0)
            except Unauthenticated as e:
                self._say(e.message)
            except ConclaveError as e:
                self._say(f"{e.message}; trying again until it answers", key=f"join {address}")
            await asyncio.sleep(pause * self._rng.uniform(0.8, 1.2))
            pause = min(pause * 2, JOIN_RETRY_S)

    async def _meet(self, address: str, node_id: str = "") -> str:
        """Calls the node at an address, by id if it is known, and makes it a peer. Returns its id."""
        hello = mesh_pb2.HelloRequest(node=self._me(), protocol=PROTOCOL)
        if not node_id:
            # Its id is not known, so the first call can only check that it is of this mesh. Whoever answers says its
            # id, and the second call checks that by the certificate.
            async with self._calling:
                stranger = Peer(self._identity, address)
                try:
                    answer = await stranger.hello(hello)
                finally:
                    await stranger.close()
            node_id = answer.node.id
            if not NODE_ID.fullmatch(node_id):
                raise PeerUnavailable(f"{address} answers as {node_id[:64]!r}, which is no node id")
            if self._is_alive(node_id) or node_id == self.id:
                return node_id
        peer = Peer(self._identity, address, node_id, self.suspect)
        try:
            async with self._calling:
                answer = await peer.hello(hello)
            await self._admit(peer, answer)
        except BaseException:
            if self._peers.get(node_id) is peer:
                del self._peers[node_id]
            await peer.close()
            raise
        return node_id

    async def _admit(self, peer: Peer, answer: mesh_pb2.HelloResponse) -> None:
        info = _checked(answer.node)
        if info is None or info.id != peer.id or answer.protocol != PROTOCOL:
            raise PeerUnavailable(
                f"{peer.address} speaks protocol {answer.protocol}, this node {PROTOCOL}: install the same version"
            )
        if info.id == self.id:
            if info.address != self._info().address:
                self._say(self._clone(info.address))
            await peer.close()
            return
        old = self._peers.get(peer.id)
        self._peers[peer.id] = peer
        if old is not None:
            await old.close(grace=60.0 if self._is_alive(peer.id) else None)
        self._apply(Alive(info, direct=True))
        # The probe measures the round trip. And if we hold it for dead, it tells it so, and its answer refutes that.
        reply = await peer.probe(self._probe_request(peer.id), 4 * self._members.settings.timeout_s)
        self._answered(peer.id, reply)
        if not self._is_alive(peer.id):
            raise PeerUnavailable(f"node {peer.id} at {peer.address} did not take back that it is dead")
        self._strangers(answer.peers)

    # ---- keeping track -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        renew_at = 0.0
        while True:
            now = time.monotonic()
            self._apply(Tick())
            for id, peer in self._peers.items():
                if peer.lost():
                    self._members.check(id)
            due = self._members.due(now)
            for id in due.probe:
                self._spawn(self._probe(id))
            for id in due.gossip:
                self._spawn(self._gossip(id))
            for id in due.reconnect:
                held = self._members.get(id)
                if held is not None and id not in self._pursued:
                    self._spawn(self._reconnect(held))
            if now >= renew_at:
                renew_at = now + 60.0
                self._renew()
            self._wake.clear()
            # Not wait_for: before Python 3.12 it may swallow the cancellation when it comes with the event, and `stop`
            # would wait for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            late = time.monotonic() - now - TICK_S
            if late > STALL_S:
                self._stalled_at = time.monotonic()
                self._members.stalled(late)

    async def _probe(self, id: str) -> None:
        """One direct probe, then indirect ones; tells the members what came of it."""
        peer = self._peers.get(id)
        if peer is None or id in self._probing:
            return
        self._probing.add(id)
        started = time.monotonic()
        timeout_s = self._members.settings.timeout_s
        try:
            try:
                self._answered(id, await peer.probe(self._probe_request(id), timeout_s))
                return
            except ConclaveError as e:
                _log.debug("probing node %s: %s", id, e.message)
            held = self._members.get(id)
            # Of a suspect others have found already that no other path leads to it.
            suspected = held is not None and held.state is NodeState.SUSPECT
            helpers = [] if suspected else [self._peers[h] for h in self._members.helpers(id) if h in self._peers]
            if helpers and any(await asyncio.gather(*(self._ask(h, id) for h in helpers))):
                return
            if self._stalled_at >= started:
                self._members.check(id)
            elif self._peers.get(id) is peer:
                self._apply(Failed(id))
        finally:
            self._probing.discard(id)

    async def _ask(self, helper: Peer, target: str) -> bool:
        """An indirect probe of `target` by `helper`: whether it answered."""
        request = self._probe_request(helper.id)
        request.target = target
        try:
            answer = await helper.probe(request, self._members.settings.timeout_s)
        except ConclaveError:
            return False
        self._hear(answer.news, helper.id)
        if answer.alive:
            self._answered(target, mesh_pb2.ProbeResponse(node=answer.node))
        return answer.alive

    async def _gossip(self, id: str) -> None:
        peer = self._peers.get(id)
        if peer is None or id in self._probing:
            return
        try:
            self._answered(id, await peer.probe(self._probe_request(id), self._members.settings.timeout_s))
        except ConclaveError:
            self.suspect(id)

    async def _reconnect(self, held: NodeInfo) -> None:
        with contextlib.suppress(ConclaveError):
            await self._meet(held.address, held.id)

    def _renew(self) -> None:
        for id, peer in list(self._peers.items()):
            if peer.expires - time.time() < RENEW_S:
                self._pursue(id, [peer.address], moved=True)

    def _probe_request(self, to: str) -> mesh_pb2.ProbeRequest:
        return mesh_pb2.ProbeRequest(node=self._me(), news=self._news(to))

    def _answered(self, id: str, answer: mesh_pb2.ProbeResponse) -> None:
        info = _checked(answer.node)
        if info is not None and info.id == id:
            self._apply(Alive(info, direct=True))
        self._hear(answer.news, id)

    def _news(self, to: str) -> list[types_pb2.NodeInfo]:
        return [wire.node_info_pb(i) for i in self._members.news(to)]

    def _hear(self, pbs: Iterable[types_pb2.NodeInfo], by: str, *, inbound: bool = False) -> None:
        news = [i for pb in list(pbs)[:MAX_NEWS] if (i := _checked(pb)) is not None]
        if not inbound:
            # A suspicion of ourselves is refuted only where it came in through our listener, for that is what is
            # suspected. Else a node behind a firewall would refute for ever what is true.
            if any(i.id == self.id and i.state is NodeState.DEAD for i in news):
                self._say(f"node {by} cannot reach this node at {self._info().address}: open that port in the firewall")
            news = [i for i in news if i.id != self.id]
        for change in self._members.hear(news, by, time.monotonic()):
            self._changed(change)
        self._strangers(pbs)

    def _strangers(self, pbs: Iterable[types_pb2.NodeInfo]) -> None:
        news = [i for pb in list(pbs)[:MAX_NEWS] if (i := _checked(pb)) is not None]
        for info in self._members.strangers(news):
            self._pursue(info.id, [info.address])

    def _apply(self, event: Alive | Dead | Failed | Tick) -> None:
        for change in self._members.apply(event, time.monotonic()):
            self._changed(change)

    def _changed(self, change: Change) -> None:
        id = change.info.id
        if change.kind in (Kind.DIED, Kind.LEFT) and id in self._peers:
            self._spawn(self._peers.pop(id).close())
        if change.kind in (Kind.SUSPECTED, Kind.REFUTED):
            self._wake.set()
        if change.kind is not Kind.UPDATED:
            _log.info("node %s: %s", id, change.kind)
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:
                _log.exception("a callback failed on %s", change.kind)

    # ---- finding -------------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        host, port = self._info().address.rsplit(":", 1)
        # What Hello tells others to dial is announced too; only a name instead of an IPv4 address cannot be.
        ips = [host] if re.fullmatch(r"[0-9.]+", host) else []
        self._discovery = Discovery(
            self.id, self.mesh_id, int(port), self._found, interfaces=self._interfaces, addresses=ips
        )
        if problem := await self._discovery.start():
            self._say(problem)

    def _meet_here(self, runtime: Path, *, look: bool) -> None:
        info = self._info()
        me = local.RunningNode(self.id, os.getpid(), self.mesh_id, info.address, info.local_address, time.time())
        try:
            self._presence = local.Presence(runtime)
            self._presence.publish(me)
        except (OSError, ConclaveError) as e:
            self._say(f"other nodes and commands on this machine cannot find this node: {e}")
        if look:
            self._spawn(
                local.watch(
                    runtime, lambda n: self._found(Found(n.node_id, n.mesh_id, (n.mesh_address,))), self._presence
                )
            )

    def _found(self, found: Found) -> None:
        if found.mesh_id != self.mesh_id:
            self._say(
                f"another mesh ({found.mesh_id}) is here, at {', '.join(found.addresses[:1])}: to join it, start this "
                "node with --token and what `python -m node token show` prints there",
                key=f"mesh {found.mesh_id}",
            )
        elif self._info().address not in found.addresses:
            self._pursue(found.node_id, found.addresses)

    # ---- small things --------------------------------------------------------------------------------------------

    def _info(self) -> NodeInfo:
        return replace(self._self_info(), id=self.id, incarnation=self._members.incarnation)

    def _me(self) -> types_pb2.NodeInfo:
        return wire.node_info_pb(self._info())

    def _is_alive(self, id: str) -> bool:
        held = self._members.get(id)
        return held is not None and held.state not in (NodeState.SUSPECT, NodeState.DEAD)

    def _say(self, line: str, key: str = "") -> None:
        """Tells a person one line, once."""
        if (key or line) in self._said or len(self.notices) >= MAX_NOTICES:
            return
        self._said.add(key or line)
        self.notices.append(line)
        _log.warning("%s", line)
        self._notice(line)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the mesh failed", exc_info=task.exception())


def _checked(pb: types_pb2.NodeInfo) -> NodeInfo | None:
    """What a peer says of a node, bounded; None if it cannot be of one. Control characters would reach a terminal."""
    info = wire.node_info(pb)
    if not NODE_ID.fullmatch(info.id) or not is_address(info.address):
        return None

    def clean(text: str) -> str:
        return "".join(c for c in text if c.isprintable())

    return replace(
        info,
        name=clean(info.name),
        model=clean(info.model),
        fingerprint=clean(info.fingerprint),
        backend=clean(info.backend),
        version=clean(info.version),
        local_address=clean(info.local_address),
    )
