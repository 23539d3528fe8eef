"""Which nodes of the mesh can be asked, and what models they have. For programs that are no member: nobody is told of
us, and we are called by nobody. Whoever holds the token may ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from node import wire
from node.address import is_address
from node.core.manifest import File, check_files
from node.errors import ConclaveError, PeerUnavailable
from node.mesh.identity import NODE_ID, Identity
from node.mesh.local import running_nodes
from node.mesh.peer import Peer
from node.v1 import mesh_pb2, models_pb2

log = logging.getLogger(__name__)

MDNS_S = 1.5  # a node that is there answers within some tenths of a second
MORE_S = 0.3  # and others answer about then
CALL_S = 3.0
TRIES = 2  # a machine that is busy, or wakes, may stand still for as long as one call
LIST_S = 10.0  # its disks may sleep
MOST_NODES = 64
MOST_MODELS = 1000
MOST_NAME = 256


@dataclass(frozen=True, slots=True)
class Has:
    """A model that a node has."""

    name: str
    files: tuple[File, ...]
    node: str


class Searched:
    """The nodes that were found, connected, what they have, and what they are called (id -> name)."""

    def __init__(self, peers: dict[str, Peer], models: list[Has], names: dict[str, str]) -> None:
        self.peers = peers
        self.models = models
        self.names = names

    def name(self, node: str) -> str:
        """A node for a person."""
        return self.names.get(node) or node


@contextlib.asynccontextmanager
async def search(
    identity: Identity, *, runtime: Path | None, interfaces: Sequence[str] = (), join: str = "auto"
) -> AsyncIterator[Searched]:
    """Ask the nodes of a mesh for their models: those of this machine and of `join`'s addresses, and all that these
    know; where there are none, those that mDNS finds if `join` says auto. Takes two seconds at most where nobody is,
    and six where an address of `join` is silent."""
    words = [w.strip() for w in join.split(",")]
    near = [] if runtime is None else [n for n in running_nodes(runtime) if n.mesh_id in identity.mesh_ids()]
    first = {n.mesh_address: n.node_id for n in near if is_address(n.mesh_address)}
    first |= {a: "" for a in words if is_address(a) and a not in first}
    async with contextlib.AsyncExitStack() as stack:
        peers, names = await _known(identity, first, stack)
        if not peers and "auto" in words:
            peers, names = await _known(identity, await _announced(identity, interfaces), stack)
        lists = await asyncio.gather(*(_models(peer) for peer in peers.values()))
        yield Searched(peers, [model for each in lists for model in each], names)


async def _announced(identity: Identity, interfaces: Sequence[str]) -> dict[str, str]:
    """Address -> id of the nodes of our mesh that mDNS finds."""
    from node.mesh.discovery import Discovery, Found  # zeroconf takes a while to load, and is seldom needed

    found: dict[str, str] = {}
    some = asyncio.Event()

    def seen(each: Found) -> None:
        if each.mesh_id in identity.mesh_ids() and each.node_id != identity.node_id and len(found) < MOST_NODES:
            found.update(dict.fromkeys(filter(is_address, each.addresses[:1]), each.node_id))
            some.set()

    discovery = Discovery(identity.node_id, identity.mesh_id, 0, seen, interfaces=interfaces)
    try:
        if problem := await discovery.start():
            log.info("%s", problem)
            return {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MDNS_S):
                await some.wait()
                await asyncio.sleep(MORE_S)
    finally:
        await discovery.stop()
    return found


async def _known(
    identity: Identity, addresses: dict[str, str], stack: contextlib.AsyncExitStack
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The nodes at some addresses, and those that they hold for alive, by id, and their names; closed with the
    stack."""
    statuses = await asyncio.gather(*(_status(identity, address, id) for address, id in addresses.items()))
    where: dict[str, str] = {}
    names: dict[str, str] = {}
    for status in statuses:
        for node in status.nodes[:MOST_NODES] if status is not None else ():
            alive = node.state == "alive" and NODE_ID.fullmatch(node.id) and is_address(node.address)
            if alive and node.id != identity.node_id and len(where) < MOST_NODES:
                where.setdefault(node.id, node.address)
                names.setdefault(node.id, node.name[:MOST_NAME] if node.name.isprintable() else "")
    peers = {id: Peer(identity, address, id) for id, address in where.items()}
    for peer in peers.values():
        stack.push_async_callback(peer.close)
    return peers, names


async def _status(identity: Identity, address: str, node_id: str) -> mesh_pb2.StatusResponse | None:
    peer = Peer(identity, address, node_id)
    try:
        for _ in range(TRIES):
            try:
                return await peer.call(peer.mesh.Status, mesh_pb2.StatusRequest(), CALL_S)
            except ConclaveError as e:
                log.info("node %s was not asked: %s", node_id or address, e)
                if not isinstance(e, PeerUnavailable):
                    break
        return None
    finally:
        await peer.close()


async def _models(peer: Peer) -> list[Has]:
    """The models of a node; what is not as it should be is left out."""
    try:
        answer = await peer.call(peer.models.List, models_pb2.ModelsListRequest(), LIST_S)
    except ConclaveError as e:
        log.info("node %s does not list its models: %s", peer.id, e)
        return []
    found = []
    for each in answer.models[:MOST_MODELS]:
        files = wire.model_files(each.files)
        problem = check_files(files)
        if problem or not each.name.isprintable() or len(each.name) > MOST_NAME:
            log.warning("node %s offers a model that is refused: %s", peer.id, problem or "its name cannot be shown")
            continue
        found.append(Has(each.name, files, peer.id))
    return found
