"""What happens at once: a topic is forgotten while its KV comes, two turns want the same KV, who waits is cancelled."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nodes import Node, meet, nodes, part

from node.core.log import Entry
from node.core.snapshot import Header
from node.errors import NotReady
from node.replicator import replicator as replicator_module
from node.replicator import turns as turns_module
from node.types import Version
from node.v1 import kvsync_pb2

LONG = "Please tell me about it. " * 14


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicator_module, "DEBOUNCE_S", 0.02)
    monkeypatch.setattr(replicator_module, "AGAIN", 0)


async def soon(condition: Any, what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def forgets_before_it_saves(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tombstone comes in the moment in which a snapshot is written, and its KV is deleted; the topics of those."""
    real, saved = node.blocks.save, []
    loop = asyncio.get_running_loop()

    def save(head: Header) -> None:
        tombstone = Entry(Version(9, 9, "x"), forgotten=True)
        asyncio.run_coroutine_threadsafe(node.replicator.turns.take(head.topic, tombstone), loop).result(20)
        node.blocks.forget(head.topic)
        real(head)
        saved.append(head.topic)

    monkeypatch.setattr(node.blocks, "save", save)
    return saved


async def test_a_topic_that_is_forgotten_while_it_is_pushed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        saved = forgets_before_it_saves(two, monkeypatch)
        await one.say(f"my boat is called Argo {LONG}")
        await soon(lambda: saved, "it is pushed")
        await soon(lambda: not two.blocks.topics(), "its KV is gone")
        await one.settled()
        assert (two.blocks.topics(), two.blocks.bytes) == ([], 0)


async def test_a_topic_that_is_forgotten_while_its_kv_is_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 1) as (one,):
        saved = forgets_before_it_saves(one, monkeypatch)
        await one.say(f"my boat is called Argo {LONG}")
        await soon(lambda: saved, "it is taken")
        await one.settled()
        assert (one.blocks.topics(), one.blocks.bytes) == ([], 0)


async def test_kv_that_two_want_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        two.blocks.forget("t")
        real, arrived, asked = two.replicator._transfer.pull, asyncio.Event(), 0

        async def pull(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            await arrived.wait()
            return await real(*args)

        monkeypatch.setattr(two.replicator._transfer, "pull", pull)
        both = [asyncio.ensure_future(two.replicator._pulls.pull("t", 150, 1.0)) for _ in range(2)]
        await soon(lambda: any(task.done() for task in both), "the second does not wait")
        arrived.set()
        got = await asyncio.gather(*both)
        assert asked == 1
        assert sorted(each is None for each in got) == [False, True]
        await two.settled()
        assert two.blocks.tokens("t") == one.blocks.tokens("t"), "and goes to the disk"


async def test_what_somebody_waited_for_a_moment_ago_ends_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the end comes before anything else could run."""
    monkeypatch.setattr(turns_module, "FRESH_S", 0.01)
    monkeypatch.setattr(turns_module, "FETCH_S", 0.01)
    async with nodes(tmp_path, 1) as (one,):
        begun, ended = asyncio.Event(), asyncio.Event()

        async def hangs(*_: object) -> AsyncIterator[kvsync_pb2.PullResponse]:
            begun.set()
            try:
                await asyncio.Event().wait()
                yield kvsync_pb2.PullResponse()
            finally:
                ended.set()

        peer: Any = SimpleNamespace(id="b" * 16, kvsync=SimpleNamespace(Pull=None), stream=hangs)
        assert await one.replicator.turns.fetch_soon("t", [peer]) == set()
        assert begun.is_set()
        assert not ended.is_set()
        await one.replicator.stop()
        assert ended.is_set()


async def test_who_is_cancelled_while_kv_comes_is_cancelled_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        head = await one.replicator.snapshots.header("t")
        assert head is not None
        await two.settled()
        two.blocks.forget("t")
        [first, *_] = head.blocks
        sent, tried = asyncio.Event(), threading.Event()

        async def hangs(*_: object) -> AsyncIterator[kvsync_pb2.PullResponse]:
            yield kvsync_pb2.PullResponse(header=head.pack())
            data = one.blocks.get(first.key)
            assert data is not None
            yield kvsync_pb2.PullResponse(chunk=kvsync_pb2.BlockChunk(key=first.key, data=data, last=True))
            sent.set()
            await asyncio.Event().wait()

        def full(*_: object) -> None:
            tried.set()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("node.store.blocks._write", full)
        peer: Any = SimpleNamespace(id=one.id, bulk=SimpleNamespace(Pull=None), stream=hangs)
        task = asyncio.ensure_future(two.replicator._transfer.pull(peer, "t", 150, 1.0))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tried.is_set(), "what came was to be kept"
        assert any("No space left" in problem for problem in two.store.problems)


async def test_a_topic_that_cannot_be_compared_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (one, two):
        for topic in ("a", "b"):
            await one.say("hi", topic=topic)
        part(one, two)
        for topic in ("a", "b"):
            await two.say("thank you", topic=topic)
        real = two.store.log

        def log(name: str) -> Any:
            if name == "a":
                raise NotReady("topic 'a' cannot be read from disk (Input/output error)")
            return real(name)

        monkeypatch.setattr(two.store, "log", log)
        meet(two, one)
        await soon(lambda: one.store.version("b") == two.store.version("b"), "the other topic is level")
