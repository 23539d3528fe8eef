"""Which nodes a command talks to, and the client that talks to them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from node import home
from node.address import is_loopback, split_address
from node.cli import render
from node.client import DEFAULT_ADDRESS, Client
from node.config import DEFAULT_PORT
from node.errors import InvalidRequest
from node.mesh.local import RunningNode, running_nodes, starting_nodes
from node.v1 import mesh_pb2

LOOK_S = 0.2


def addresses(given: Sequence[str] | None) -> list[str]:
    """Where to ask: what the user gave, else the nodes of this machine, else the default port. Raises InvalidRequest
    for a name that no node of this machine has."""
    return [_address(g) for g in given] if given else local_addresses() or [DEFAULT_ADDRESS]


def _address(given: str) -> str:
    """An address, or that of a node of this machine that is called so: by its name, its id, or both, as `status` has
    them. A name with a dot looks like a host."""
    running = [n for n in running_nodes(home.home().runtime) if n.local_address]
    called = given.removesuffix(f":{DEFAULT_PORT}")
    name, _, id = called.rpartition("/")
    found = [n for n in running if called in (n.name, n.node_id)]
    found = found or [n for n in running if len(id) >= render.SHORT_ID and n.id.startswith(id) and name in ("", n.name)]
    if len(found) == 1:
        return found[0].local_address
    if split_address(given):
        return given
    names = render.labels(running)
    here = ", ".join(f"{names[n.node_id]} ({n.local_address})" for n in running) or "none"
    if found:
        raise InvalidRequest(f"--address: {given!r} are several nodes of this machine: {here}")
    raise InvalidRequest(
        f"--address: {given!r} is not an address: its port is missing (write HOST:PORT, such as {DEFAULT_ADDRESS}); "
        f"nor is a node of this machine called so: there is {here}"
    )


def local_addresses() -> list[str]:
    """Addresses of the nodes that run on this machine, as they say themselves: those of one mesh, the oldest node's."""
    running = [n for n in running_nodes(home.home().runtime) if n.local_address]
    return [n.local_address for n in running if n.mesh_id == running[0].mesh_id]


def wait_for_start(given: Sequence[str] | None) -> None:
    """Wait as long as this machine has no node that answers and one that loads its model."""
    said = False
    while not given and not local_addresses() and (starting := starting_nodes(home.home().runtime)):
        if not said:
            render.note(f"note: {starts(starting[0])}; waiting for it (^C ends that)")
            said = True
        time.sleep(LOOK_S)


def starts(node: RunningNode) -> str:
    """What to say of a node that is not there yet."""
    called = render.labels([node])[node.id]
    return f"node {called} of this machine is loading its model, since {max(time.time() - node.started, 0):.0f} s"


def elsewhere(problem: str) -> str:
    """What to say of a problem that says that no node answers at an address: that one here is starting, which port of a
    node of this machine that is, or where this machine's nodes do answer."""
    running = [n for n in running_nodes(home.home().runtime) if n.local_address]
    asked = [found for a in re.findall(r"\S+:\d{1,5}\b", problem) if (found := split_address(a))]
    before = problem.partition(": start one")[0]  # who took another port of a node need not start one
    for node in running:
        for address, whom in ((node.http_address, "HTTP"), (node.mesh_address, "other nodes")):
            there = split_address(address)
            if there and any(p == there[1] and (is_loopback(h) or h == there[0]) for h, p in asked):
                return f"{before}; {there[1]} is a node's port for {whom}: clients go to {node.local_address}"
    if not running and (starting := starting_nodes(home.home().runtime)):
        return f"{before}: {starts(starting[0])}; ask again when it is ready"
    here = local_addresses()
    return (
        f"{problem}; this machine's answer at {', '.join(here)}"
        if here and not any(a in problem for a in here)
        else problem
    )


def status(given: Sequence[str] | None) -> mesh_pb2.StatusResponse:
    """What the first node that answers says of itself and its mesh. Raises ConclaveError."""

    async def ask() -> mesh_pb2.StatusResponse:
        async with Client(addresses(given)) as client:
            return await client.status()

    return asyncio.run(ask())
