"""Pushes that break every rule, over real gRPC with a certificate of the mesh: each is refused by its reason or breaks
off, none hangs or holds on, and what is held afterwards is what a sound push brought."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from nodes import TOKEN, Node, nodes

from node import metrics
from node.core import snapshot
from node.core.log import Entry
from node.core.snapshot import Header
from node.mesh.identity import Identity
from node.mesh.peer import Peer
from node.replicator import replicator as replicator_module
from node.replicator import transfer
from node.types import Message, Version
from node.v1 import kvsync_pb2

LONG = "Please tell me about it. " * 14
Part = kvsync_pb2.PushRequest
Parts = list[kvsync_pb2.PushRequest]
STRANGER = "z" * 16


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicator_module, "DEBOUNCE_S", 0.02)
    monkeypatch.setattr(replicator_module, "AGAIN", 0)


def chunk(key: bytes, data: bytes, offset: int = 0, *, last: bool = True) -> kvsync_pb2.PushRequest:
    return Part(chunk=kvsync_pb2.BlockChunk(key=key, offset=offset, data=data, last=last))


@dataclass
class Attack:
    """Somebody with the token, a node that he pushes to, and a sound push of what it lacks."""

    peer: Peer
    node: Node
    head: Header
    sound: Parts
    blocks: dict[bytes, bytes]

    async def push(self, parts: Parts | AsyncIterator[Part], timeout_s: float = 5.0) -> str:
        """What came of it: "accepted", the reason, or the code of the failed call."""

        async def each() -> AsyncIterator[Part]:
            for part in parts:  # type: ignore[union-attr]
                yield part

        stream = each() if isinstance(parts, list) else parts
        try:
            answer = await self.peer.bulk.Push(stream, timeout=timeout_s)
        except grpc.aio.AioRpcError as e:
            return str(e.code().name)
        return "accepted" if answer.accepted else str(answer.reason)

    def is_clean(self) -> None:
        """Nothing is held that is not whole and right."""
        held = self.node.blocks
        for key in list(held._sizes):
            assert held.get(key) == self.blocks[key], "a block that is not the one that was sent"
        if held.tokens("t"):
            ours = self.node.replicator.snapshots.ours
            assert ours is not None
            found = snapshot.check(held.header("t") or b"", ours)  # a version is what a peer says it is
            assert (found.tokens, found.blocks) == (self.head.tokens, self.head.blocks)
        assert self.node.replicator._transfer._incoming == 0


@contextlib.asynccontextmanager
async def attack(path: Path) -> AsyncIterator[Attack]:
    async with nodes(path, 2) as (one, two):
        one.mesh.away.add(two.id)
        two.mesh.away.add(one.id)
        await one.say(f"my boat is called Argo {LONG}")
        await one.settled()
        head = await one.replicator.snapshots.header("t")
        assert head is not None
        blocks = {b.key: one.blocks.get(b.key) or b"" for b in head.blocks}
        said = Entry(head.version, messages=(Message("user", "x"), Message("assistant", "y")))
        await two.store.add("t", said)
        peer = Peer(Identity(TOKEN, STRANGER), two.address, two.id)
        sound: Parts = [Part(header=head.pack())]
        for key, data in blocks.items():
            half = len(data) // 2
            sound += [chunk(key, data[:half], last=False), chunk(key, data[half:], half)]
        try:
            yield Attack(peer, two, head, sound, blocks)
        finally:
            await peer.close()


def lies(made: Attack) -> Iterator[tuple[str, Parts, str]]:
    """A push, and what is said to it."""
    head, *chunks = made.sound
    first = chunks[0].chunk
    other = next(key for key in made.blocks if key != first.key)
    yield "nothing", [], "missing"
    yield "an empty message", [Part()], "unwanted"
    yield "a header alone", [head], "missing"
    yield "blocks before the header", chunks, "unwanted"
    yield "two headers", [head, head], "malformed"
    yield "a header that is cut", [Part(header=head.header[:-1])], "malformed"
    yield "a block of nobody's", [head, chunk(b"?" * 16, b"x")], "unwanted"
    yield "a key of no length", [head, chunk(b"", b"x")], "unwanted"
    yield "the second half first", [head, chunks[1], chunks[0]], "malformed"
    yield "a half twice", [head, chunks[0], chunks[0]], "malformed"
    yield "another block in between", [head, chunks[0], chunk(other, made.blocks[other])], "malformed"
    yield "an offset out of the world", [head, chunk(first.key, b"x", (1 << 64) - 1)], "malformed"
    yield "an end without data", [head, chunk(first.key, b"")], "size"
    yield "no data and no end", [head, chunk(first.key, b"", last=False)], "malformed"
    yield "a block that is too long", [head, chunk(first.key, made.blocks[first.key] + b"x")], "size"
    yield "a part of 2 MiB", [head, chunk(first.key, bytes(2 << 20))], "too_large"
    yield "another's bytes", [head, chunk(first.key, made.blocks[other][: len(made.blocks[first.key])])], "checksum"
    yield "a byte less in each", [head, *(chunk(k, d[:-1]) for k, d in made.blocks.items())], "size"


async def test_each_lie_has_its_reason(tmp_path: Path) -> None:
    async with attack(tmp_path) as made:
        for name, parts, expected in lies(made):
            assert await made.push(parts) == expected, name
            made.is_clean()
        assert await made.push(made.sound) == "accepted"
        again = [*made.sound, *made.sound[1:]]
        assert await made.push(again) == "too_large", "what is here already cannot be sent for ever either"
        made.is_clean()


async def test_who_sends_nothing_or_for_ever_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_S", 1.0)
    monkeypatch.setattr(transfer, "MAX_INCOMING", 4)
    async with attack(tmp_path) as made:
        first = made.sound[1]

        async def silent() -> AsyncIterator[Part]:
            yield made.sound[0]
            yield first
            await asyncio.sleep(60)

        async def endless(part: Part) -> AsyncIterator[Part]:
            yield made.sound[0]
            while True:
                yield part

        slow = metrics.SNAPSHOTS_REFUSED.labels("slow")._value.get()
        assert await made.push(silent()) == "slow"
        assert metrics.SNAPSHOTS_REFUSED.labels("slow")._value.get() == slow + 1
        many = [asyncio.ensure_future(made.push(silent())) for _ in range(12)]
        said = await asyncio.gather(*many)
        assert (said.count("slow"), said.count("busy")) == (4, 8), "no more at a time than there is room for"
        monkeypatch.setattr(transfer, "PART_S", 60.0)
        assert await made.push(endless(chunk(first.chunk.key, b"", last=False))) == "malformed"
        assert await made.push(made.sound) == "accepted"
        assert await made.push(endless(chunk(first.chunk.key, b"", last=False))) == "too_large", "parts without bytes"
        assert await made.push(endless(chunk(first.chunk.key, bytes(1 << 20)))) == "too_large"
        assert await made.push(silent(), timeout_s=0.1) == "DEADLINE_EXCEEDED", "the caller has gone"
        async with asyncio.timeout(60):
            while made.node.replicator._transfer._incoming:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        made.is_clean()


async def test_pushes_that_never_end_keep_within_the_budget(tmp_path: Path) -> None:
    async with attack(tmp_path) as made:
        held = made.node.blocks
        held._limit = 3 * max(map(len, made.blocks.values()))
        for _ in range(3):
            assert await made.push(made.sound[:-1]) in ("missing", "disk")
            assert held.bytes <= held._limit


def drop(rng: random.Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts))
    return parts[:at] + parts[at + 1 :]


def swap(rng: random.Random, parts: Parts) -> Parts:
    a, b = rng.sample(range(len(parts)), 2)
    parts[a], parts[b] = parts[b], parts[a]
    return parts


def repeat(rng: random.Random, parts: Parts) -> Parts:
    at = rng.randrange(len(parts))
    return parts[:at] + parts[at : at + 1] * rng.choice([2, 3, 50]) + parts[at + 1 :]


def end(rng: random.Random, parts: Parts) -> Parts:
    return parts[: rng.randrange(len(parts))]


def garble(rng: random.Random, parts: Parts) -> Parts:
    """The bytes of one message are others, and still a message, or not."""
    at = rng.randrange(len(parts))
    raw = bytearray(parts[at].SerializeToString())
    for _ in range(rng.choice([1, 2, 10]) if raw else 0):
        raw[rng.randrange(min(len(raw), rng.choice([40, 1 << 30])))] ^= 1 << rng.randrange(8)
    with contextlib.suppress(Exception):
        parts[at] = Part.FromString(bytes(raw))
    return parts


def say_otherwise(rng: random.Random, parts: Parts) -> Parts:
    at = rng.randrange(1, len(parts))
    said = parts[at].chunk
    field = rng.choice(["offset", "last", "data", "key"])
    changed: dict[str, object] = {
        "offset": rng.choice([0, 1, 1 << 40]),
        "last": not said.last,
        "data": said.data[: rng.randrange(len(said.data) + 1)],
        "key": rng.randbytes(16),
    }
    fields = {"key": said.key, "offset": said.offset, "data": said.data, "last": said.last} | {field: changed[field]}
    parts[at] = Part(chunk=kvsync_pb2.BlockChunk(**fields))  # type: ignore[arg-type]
    return parts


MUTATIONS: list[Callable[[random.Random, Parts], Parts]] = [drop, swap, repeat, end, garble, say_otherwise]


async def test_mutated_pushes(tmp_path: Path) -> None:
    rng = random.Random(7)
    async with attack(tmp_path) as made:
        said: dict[str, int] = {}
        for _ in range(400):
            parts = list(made.sound)
            for _ in range(rng.choice([1, 1, 2, 5])):
                parts = rng.choice(MUTATIONS)(rng, parts if len(parts) > 1 else list(made.sound))
            answer = await made.push(parts)
            said[answer] = said.get(answer, 0) + 1
            made.is_clean()
            if made.node.blocks.tokens("t"):  # it is not to have all already
                made.node.blocks.forget("t")
            if rng.random() < 0.5:
                for key in list(made.node.blocks._sizes):
                    made.node.blocks.drop(key)
        assert {"accepted", "malformed", "missing", "unwanted"} <= set(said), said
        assert set(said) <= {"accepted", "malformed", "missing", "unwanted", "size", "checksum", "too_large", "keys",
                             "fingerprint", "tokens", "layout", "cuts", "stale"}, said  # fmt: skip
        made.node.blocks.forget("t")
        await made.node.store.add("t", Entry(Version(0, 2, "n"), made.head.version, (Message("user", "z"),)))
        assert await made.push(made.sound) == "accepted"
        made.is_clean()
