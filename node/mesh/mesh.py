"""The mesh as the other layers see it: who is there, and what to answer to peers that ask."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from node import wire
from node.address import is_address, split_address
from node.core.members import Change, Dead, Settings
from node.errors import ConclaveError, InvalidRequest, NotFound, NotReady
from node.mesh import local, overlap
from node.mesh.caller import Caller
from node.mesh.discovery import Discovery, Found
from node.mesh.identity import Identity
from node.mesh.interfaces import is_ours, still
from node.mesh.peer import Peer
from node.mesh.prober import Prober
from node.mesh.roster import MAX_NEWS, PROTOCOL, Roster, caller
from node.types import NodeInfo
from node.v1 import mesh_pb2

GOODBYE_S = 0.5
ADDRESS_S = 1.0  # A new lease must show before the node is held for dead.


class Mesh:
    """Membership and connections of one node.

    `self_info` describes this node whenever asked; its `address` must be what others can dial. `runtime` is the
    directory of `node.home` where nodes of this machine meet (None: not used), `interfaces` the local IPs for mDNS
    (empty: all), `mdns` whether to use it under `join="auto"`. `notice` is told, once, each line that a person should
    see; `notices` has those that are true now. `moved` is told the new address when this machine's changes (None: it
    does not).
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
        moved: Callable[[str], None] | None = None,
        rng: random.Random | None = None,
        http_address: str = "",
    ) -> None:
        self.id = identity.node_id
        self._http_address = http_address
        self.mesh_id = identity.mesh_id
        self._roster = Roster(identity, self_info, settings, notice, rng or random.Random())
        self._caller = Caller(self._roster)
        self._prober = Prober(self._roster, self._caller)
        self._runtime = runtime
        self._interfaces = interfaces
        self._moved = moved
        self._mdns = mdns
        self._started = time.time()
        self._running: asyncio.Task[None] | None = None
        self._discovery: Discovery | None = None
        self._presence: local.Presence | None = None

    @property
    def notices(self) -> list[str]:
        """What a person should see and is true now, one line each, the oldest first."""
        return self._roster.notices()

    # ---- starting and stopping ----

    async def start(self, join: str | Sequence[str] = "auto") -> None:
        """Begins to look for peers: "auto", "none", or HOST:PORT addresses (comma-separated or a sequence).

        The mesh listener must serve already. With "none" no one is looked for, but others may join us. Nothing here
        waits for a peer or fails for want of one; see `notices`. Raises InvalidRequest for a malformed address.
        """
        words = [a.strip() for a in (join.split(",") if isinstance(join, str) else join)]
        addresses = [w for w in words if w not in ("auto", "none")]
        for address in addresses:
            if not is_address(address):
                raise InvalidRequest(f"--join {address!r} is not an address: write HOST:PORT, or auto, or none")
        self._running = self._roster.spawn(self._prober.run())
        self._roster.spawn(self._roster.keep_on(self._caller.look_at_foreign, "looks at other meshes"))
        if self._runtime is not None:
            self._meet_here(self._runtime, look="auto" in words)
        for address in addresses:
            self._roster.spawn(self._caller.join(address))
        if "auto" in words and self._mdns:
            await self._announce()
        if self._moved is not None:
            look = partial(self._look_at_address, self._moved)
            self._roster.spawn(self._roster.keep_on(look, "looks at this machine's addresses"))

    async def stop(self) -> None:
        """Leaves: withdraws announcements, says goodbye to the peers (at most half a second), closes everything."""
        roster = self._roster
        if roster.stopping:
            return
        roster.stopping = True
        if self._presence is not None:
            self._presence.withdraw()
        if self._running is not None:
            self._running.cancel()
        goodbye = mesh_pb2.HelloRequest(node=roster.me(), protocol=PROTOCOL, leaving=True)
        discovery = [self._discovery.stop()] if self._discovery is not None else []
        # Who came back a moment ago may not be connected yet, and must hear it too.
        unmet = [i for i in roster.members.alive() if i.id not in roster.peers]
        roster.peers |= {i.id: Peer(roster.identity, i.address, i.id) for i in unmet}
        await asyncio.gather(
            *discovery, *(p.hello(goodbye, GOODBYE_S) for p in roster.peers.values()), return_exceptions=True
        )
        await roster.close()

    def _meet_here(self, runtime: Path, *, look: bool) -> None:
        try:
            self._presence = local.Presence(runtime)
            self._presence.publish(self._here())
        except (OSError, ConclaveError) as e:
            self._roster.say(f"other nodes and commands on this machine cannot find this node: {e}")
        if look:
            self._roster.spawn(
                local.watch(
                    runtime,
                    lambda n: self._caller.found(Found(n.node_id, n.mesh_id, (n.mesh_address,))),
                    self._presence,
                )
            )

    def _here(self) -> local.RunningNode:
        info, http = self._roster.info(), self._http_address
        return local.RunningNode(
            self.id,
            os.getpid(),
            self.mesh_id,
            info.address,
            info.local_address,
            self._started,
            http,
            local.network(),
            info.name,
        )

    async def _announce(self) -> None:
        host, port = split_address(self._roster.info().address) or ("", 0)
        # What Hello tells others to dial is announced too; only a name instead of an address cannot be.
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_address(host))
            self._discovery = Discovery(
                self.id, self.mesh_id, port, self._caller.found, interfaces=self._interfaces, addresses=[host]
            )
            # The second takes a moment where multicast works, and half a second where it does not.
            if problem := await self._discovery.start() or await self._discovery.deaf():
                self._roster.say(problem, key="discovery")
            else:
                self._roster.unsay("discovery")

    async def _look_at_address(self, moved: Callable[[str], None]) -> None:
        """Notices, a while later, that this machine was given another address, and tells whoever would dial the old
        one."""
        await asyncio.sleep(ADDRESS_S)
        old = self._roster.info().address
        if is_ours(old):
            return
        new = await asyncio.to_thread(still, old, self._interfaces)
        if new == old:
            return
        moved(new)
        self._roster.members.renew()
        self._caller.again()
        if self._presence is not None:
            with contextlib.suppress(OSError):
                self._presence.publish(self._here())
        if self._discovery is not None:
            await self._discovery.stop()
            await self._announce()
        self._roster.say(f"this machine's address changed: other machines join now with --join {new}", key="moved")

    # ---- for the other layers ----

    def peers(self) -> list[Peer]:
        """The peers that are alive (not suspected), by id, with what they last said of themselves."""
        out = []
        for info in self._roster.members.alive():
            peer = self._roster.peers.get(info.id)
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
        members, peers = self._roster.members, self._roster.peers
        others = [
            replace(i, round_trip_ms=peers[i.id].round_trip_ms) if i.id in peers else i
            for i in members.all()
            if not members.has_left(i.id)
        ]
        return [self._roster.info(), *others]

    def on_change(self, callback: Callable[[Change], None]) -> None:
        """Has `callback` called with each change of the membership, on the event loop."""
        self._roster.callbacks.append(callback)

    def suspect(self, node_id: str) -> None:
        """Something spoke against a peer (a broken stream): it is probed at once."""
        self._roster.suspect(node_id)

    # ---- what peers ask us (called by the mesh listener) ----

    async def hello(
        self, request: mesh_pb2.HelloRequest, peer_identity: str, source: str = ""
    ) -> mesh_pb2.HelloResponse:
        """Mesh.Hello. `peer_identity` is the node id in the caller's certificate (`identity.peer_id`), `source` where
        the call came from, as gRPC names it.

        Raises Unauthenticated if it is not the id that is said, InvalidRequest for another protocol or an id that
        is in use elsewhere, NotReady while stopping.
        """
        roster = self._roster
        if roster.stopping:
            raise NotReady(f"node {self.id} is stopping")
        info = caller(request.node, peer_identity)
        if request.protocol != PROTOCOL:
            raise InvalidRequest(
                f"node {self.id} speaks protocol {PROTOCOL}, the caller {request.protocol}: install the same version"
            )
        if request.leaving:
            roster.apply(Dead(info.id, info.incarnation, left=True))
            return mesh_pb2.HelloResponse(node=roster.me(), protocol=PROTOCOL)
        await self._caller.refuse_clone(info)
        roster.identity.learn(request.overlap)
        self._caller.heard(info, source)
        known = [wire.node_info_pb(i) for i in roster.members.alive() if i.id != info.id]
        also = overlap.told(roster.identity.overlap())
        return mesh_pb2.HelloResponse(node=roster.me(), peers=known[:MAX_NEWS], protocol=PROTOCOL, overlap=also)

    async def probe(
        self, request: mesh_pb2.ProbeRequest, peer_identity: str, source: str = ""
    ) -> mesh_pb2.ProbeResponse:
        """Mesh.Probe: a sign of life, or one of `target` on the caller's behalf. Raises Unauthenticated.

        Answered to the end, so that peers hear our goodbye before they miss us.
        """
        roster = self._roster
        info = caller(request.node, peer_identity)
        self._caller.heard(info, source)
        if not roster.stopping:  # who suspects us is not refuted then: that would overtake our goodbye
            roster.hear(request.news, info.id, inbound=True)
        if request.target and request.target != self.id:
            answer = await self._prober.relay(request.target)
        else:
            answer = mesh_pb2.ProbeResponse(node=roster.me(), alive=True)
        answer.news.extend(roster.news(info.id))
        return answer
