"""Which nodes a command talks to, and the client that talks to them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from node import home
from node.address import is_loopback, split_address
from node.client import DEFAULT_ADDRESS, Client
from node.mesh.local import running_nodes
from node.v1 import mesh_pb2


def addresses(given: Sequence[str] | None) -> list[str]:
    """Where to ask: what the user gave, else the nodes of this machine, else the default port."""
    return list(given) if given else local_addresses() or [DEFAULT_ADDRESS]


def local_addresses() -> list[str]:
    """Addresses of the nodes that run on this machine, as they say themselves: those of one mesh, the oldest node's."""
    running = [n for n in running_nodes(home.home().runtime) if n.local_address]
    return [n.local_address for n in running if n.mesh_id == running[0].mesh_id]


def elsewhere(problem: str) -> str:
    """What to add to a problem that says that no node answers at an address: which port of a node of this machine that
    is, or where this machine's nodes do answer."""
    running = [n for n in running_nodes(home.home().runtime) if n.local_address]
    asked = [found for a in re.findall(r"\S+:\d{1,5}\b", problem) if (found := split_address(a))]
    for node in running:
        for address, whom in ((node.http_address, "HTTP"), (node.mesh_address, "other nodes")):
            there = split_address(address)
            if there and any(p == there[1] and (is_loopback(h) or h == there[0]) for h, p in asked):
                return f"; {there[1]} is a node's port for {whom}: clients go to {node.local_address}"
    here = local_addresses()
    return f"; this machine's answer at {', '.join(here)}" if here and not any(a in problem for a in here) else ""


def status(given: Sequence[str] | None) -> mesh_pb2.StatusResponse:
    """What the first node that answers says of itself and its mesh. Raises ConclaveError."""

    async def ask() -> mesh_pb2.StatusResponse:
        async with Client(addresses(given)) as client:
            return await client.status()

    return asyncio.run(ask())
