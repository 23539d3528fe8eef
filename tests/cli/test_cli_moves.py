"""What is said when a node goes away in the middle of an answer; and which port was asked in place of the right one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from fakenode import FakeNode, Run, nobody

from node.cli import reach
from node.client import Client, Moved, NodeGone, request
from node.mesh.local import Presence, RunningNode


async def events(client: Client, dies: FakeNode) -> list[str]:
    """What a stream says, by name; the node goes away once it has begun to write."""
    seen: list[str] = []
    async with contextlib.aclosing(client.stream(request("Why?", candidates=1))) as stream:
        async for event in stream:
            seen.append("moved" if isinstance(event, Moved) else str(event.WhichOneof("event")))
            if seen == ["plan", "token"]:
                dies.server.stop(0)
    return seen


def test_it_is_said_that_another_node_goes_on_once_one_does(node: FakeNode) -> None:
    dies = FakeNode(hang=True)

    async def ask() -> list[str]:
        async with Client([dies.address, node.address]) as client:
            return await events(client, dies)

    try:
        seen = asyncio.run(ask())
    finally:
        dies.stop()
    assert [e for e in seen if e in ("plan", "moved", "done")] == ["plan", "moved", "plan", "done"]


def test_it_is_not_said_where_none_does() -> None:
    dies = FakeNode(hang=True)

    async def ask() -> list[str]:
        async with Client([dies.address]) as client:
            with pytest.raises(
                NodeGone, match=r"went away in the middle of the answer, and no node answers at"
            ) as gone:
                await events(client, dies)
            return [gone.value.message]

    try:
        (message,) = asyncio.run(ask())
    finally:
        dies.stop()
    assert message.count(dies.address) == 2


def test_another_port_of_a_node_is_named(own_home: Path, run: Run) -> None:
    presence = Presence(own_home / "run")
    http, mesh = nobody(), nobody()
    presence.publish(
        RunningNode("a" * 10, 1, "feedfeed", mesh.replace("127.0.0.1", "10.0.0.7"), "127.0.0.1:1", 0.0, http)
    )
    try:
        said = run("ask", "hi", "--address", http)
        assert (said.code, said.out) == (1, "")
        port = http.rpartition(":")[2]
        assert said.err == (
            f"error: no node answers at {http}; {port} is a node's port for HTTP: clients go to 127.0.0.1:1\n"
        )
        assert "is a node's port for other nodes: clients go to 127.0.0.1:1" in reach.elsewhere(f"none at {mesh}: so")
        assert "port for" not in reach.elsewhere(f"none at 10.0.0.8:{port}: so"), "of another machine"
        assert "this machine's answer at 127.0.0.1:1" in reach.elsewhere("no node answers at 127.0.0.1:2: start one")
        assert reach.elsewhere("no node answers at 127.0.0.1:1: start one") == ""
    finally:
        presence.withdraw()
