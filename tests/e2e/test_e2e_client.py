"""`node.client` and `chat` against real nodes that die: they go on at another node, and no turn counts twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest
from swarm import SOON_S, Node, Swarm, slow, together, until

from node.client import Client, Moved, NodeGone, request
from node.errors import InvalidRequest, NotFound
from node.v1 import generate_pb2, types_pb2

Pair = tuple[Swarm, list[Node]]


async def ask(
    client: Client, asked: generate_pb2.GenerateRequest, during: object = None
) -> tuple[generate_pb2.GenerateResponse, int]:
    """The answer and how often it was begun anew; `during` is called at the first token."""
    moves = 0
    async with contextlib.aclosing(client.stream(asked, SOON_S)) as events:
        async for event in events:
            if isinstance(event, Moved):
                moves += 1
            elif event.WhichOneof("event") == "token" and during is not None:
                act, during = during, None
                # The other addresses are learnt beside the first answer; a user's node does not die in the same moment.
                async with asyncio.timeout(SOON_S):
                    while len(client.addresses) < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                act()  # type: ignore[operator]
            elif event.WhichOneof("event") == "done":
                return event.done, moves
    raise AssertionError("no result")


async def test_a_client_moves_when_its_node_freezes(own: Swarm) -> None:
    """Only one address is given; the other node of the machine is learnt. A frozen node is the hardest to notice."""
    one, two = own.up(2, *slow(60, 20, "42", "41"))
    async with Client(one.address) as client:
        asked = request("Why?", topic="moved", strategy="quality")
        answer, moves = await ask(client, asked, lambda: one.signal(signal.SIGSTOP))
        assert moves == 1
        assert answer.request_id == asked.request_id
        assert answer.version == types_pb2.Version(turn=1, node_id=two.id)
        (topic,) = [t for t in two.client.status().topics if t.topic == "moved"]
        assert topic.version.turn == 1
        # It stays there, and the conversation goes on.
        again = request("And?", topic="moved", append=True, parent=answer.version, candidates=1)
        answer, moves = await ask(client, again)
        assert (moves, answer.version.turn) == (0, 2)


async def test_unary_calls_move_too(own: Swarm) -> None:
    one, two = own.up(2, *slow(20, 20, "42"))
    async with Client([one.address, two.address]) as client:
        asking = asyncio.create_task(client.generate(request("Why?", strategy="quality", candidates=2, local=True)))
        await asyncio.to_thread(until, lambda: one.used() > 0, "it works")
        one.signal(signal.SIGKILL)
        answer = await asking
        assert {c.node for c in answer.candidates} == {two.id}
        assert next(n.id for n in (await client.status()).nodes if n.state == "alive") == two.id
        two.signal(signal.SIGKILL)
        with pytest.raises(NodeGone, match=r"went away|no node answers"):
            await client.generate(request("Why?"), SOON_S)


async def test_a_turn_is_not_appended_to_an_older_past(fakes: Pair) -> None:
    _, (one, _) = fakes
    async with Client(one.address) as client:
        first = await client.generate(request("one", topic="past", candidates=1))
        newer = types_pb2.Version(turn=first.version.turn + 1, node_id=one.id)
        with pytest.raises(NotFound, match="up to turn 1, not to turn 2"):
            await client.generate(request("three", topic="past", append=True, parent=newer, candidates=1))
        second = await client.generate(request("two", topic="past", append=True, parent=first.version, candidates=1))
        assert second.version.turn == 2


async def test_embed_status_and_names(fakes: Pair) -> None:
    _, (one, two) = fakes
    port = one.address.rpartition(":")[2]
    async with Client(f"localhost:{port}, no-such-host.invalid:1,[::1]:{port}") as client:
        (vector,) = await client.embed(["a text"])
        assert sum(v * v for v in vector) == pytest.approx(1.0, rel=1e-3)
        status = await client.status()
        assert {n.id for n in status.nodes} >= {one.id, two.id}
    with pytest.raises(InvalidRequest, match="is not an address"):
        Client("localhost")
    with pytest.raises(NodeGone, match="known host"):
        async with Client("no-such-host.invalid:1,nor-this.invalid:2") as client:
            await client.status()


def test_chat_goes_on_at_the_other_node(own: Swarm) -> None:
    """A person's chat with no address given: its node, the one that started first, is killed in the middle of it."""
    one = own.start(*slow(60, 20, "42"))
    own.ready(one)
    two = own.start(*slow(60, 20, "42"))
    own.ready(two)
    together(one, two)
    chat = own.popen("chat", "--topic", "garden", stdin=True)
    assert chat.stdin is not None
    chat.stdin.write(b"first\n")
    chat.stdin.flush()
    until(lambda: one.used() > 0, "the turn is computed")
    time.sleep(0.3)
    one.signal(signal.SIGKILL)
    out, err = chat.communicate(timeout=SOON_S)
    assert chat.returncode == 0, err
    assert out.decode().count("answer: 42") == 1
    (topic,) = two.client.status().topics
    assert (topic.version.turn, topic.version.node_id) == (1, two.id)
