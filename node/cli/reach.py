"""Which nodes a command talks to, and the client that talks to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from node import home
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


def status(given: Sequence[str] | None) -> mesh_pb2.StatusResponse:
    """What the first node that answers says of itself and its mesh. Raises ConclaveError."""

    async def ask() -> mesh_pb2.StatusResponse:
        async with Client(addresses(given)) as client:
            return await client.status()

    return asyncio.run(ask())
