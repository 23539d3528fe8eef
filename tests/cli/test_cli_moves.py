"""What is said when a node goes away in the middle of an answer; and which port was asked in place of the right one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import replace
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
        assert (
            reach.elsewhere("no node answers at 127.0.0.1:1: start one") == "no node answers at 127.0.0.1:1: start one"
        )
    finally:
        presence.withdraw()


def test_a_node_of_this_machine_is_asked_by_its_name_or_id(own_home: Path, run: Run, node: FakeNode) -> None:
    here = [Presence(own_home / "run") for _ in range(2)]
    here[0].publish(RunningNode("a" * 10, 1, "feedfeed", "127.0.0.1:1", node.address, 0.0, name="vm"))
    here[1].publish(RunningNode("b" * 10, 1, "feedfeed", "127.0.0.1:2", nobody(), 1.0, name="vm"))
    try:
        for called in ("a" * 10, "vm/aaaa", "vm/" + "a" * 10):
            assert run("ask", "hi", "--address", called).out == "The answer is 42.\n"
        both = run("ask", "hi", "--address", "vm")
        assert (both.code, "'vm' are several nodes" in both.err, f"vm/aaaa ({node.address})" in both.err) == (
            2,
            True,
            True,
        )
        for called in ("tower", "vm/cccc"):
            none = run("ask", "hi", "--address", called)
            assert (none.code, "nor is a node of this machine called so: there is vm/aaaa" in none.err) == (2, True)
        here[1].publish(RunningNode("b" * 10, 1, "feedfeed", "127.0.0.1:2", node.address, 1.0, name="mac.local"))
        assert run("ask", "hi", "--address", "mac.local").out == "The answer is 42.\n"
    finally:
        for each in here:
            each.withdraw()


def test_a_node_that_loads_its_model_is_waited_for(
    own_home: Path, run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = Presence(own_home / "run")
    loading = RunningNode("a" * 10, 1, "feedfeed", "", "", time.time() - 9.5, name="vm", is_starting=True)
    presence.publish(loading)
    try:
        said = run("status", "--address", nobody())
        assert said.code == 1
        assert re.search(r": node vm of this machine is loading its model, since \d+ s; ask again", said.err)
        assert "start one" not in said.err

        def ready(_: float) -> None:
            presence.publish(replace(loading, local_address=node.address, is_starting=False))

        monkeypatch.setattr(reach.time, "sleep", ready)
        done = run("ask", "hi")
        assert (done.code, done.out) == (0, "The answer is 42.\n")
        assert "node vm of this machine is loading its model" in done.err
    finally:
        presence.withdraw()
