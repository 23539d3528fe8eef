"""Nothing that a node holds grows with the number of requests, of topics or of request ids beyond its limit."""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping

import pytest
from scripted import Swarm, request

from node.coordinator import Coordinator, Wrote, answered, claims, coordinator
from node.engine import slots
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.store import Store
from node.store import topics as stored
from node.types import Strategy

LIMIT = 16
CONTAINERS = (dict, list, set, frozenset, tuple, deque, OrderedDict)


def sizes(*roots: object) -> Counter[str]:
    """How much is in all containers that objects of ours hold, by class and attribute."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        each = todo.pop()
        if id(each) in seen or not type(each).__module__.startswith("node."):
            continue
        seen.add(id(each))
        names = {*getattr(each, "__dict__", {}), *(n for c in type(each).__mro__ for n in getattr(c, "__slots__", ()))}
        for name in names:
            value = getattr(each, name, None)
            if isinstance(value, CONTAINERS):
                found[f"{type(each).__name__}.{name}"] += len(value)
            todo += parts(value)
    return found


def parts(value: object, depth: int = 3) -> list[object]:
    """What a value consists of, through containers in containers."""
    if not isinstance(value, CONTAINERS) or not depth:
        return [value]
    inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)
    return [part for each in inner for part in parts(each, depth - 1)]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "MOST", LIMIT)
    monkeypatch.setattr(claims, "MAX_NOTED", LIMIT)
    monkeypatch.setattr(coordinator, "REMEMBERED_POLLS", LIMIT)
    monkeypatch.setattr(slots, "MOST_USES", LIMIT)
    monkeypatch.setattr(stored, "MAX_TOPICS", LIMIT)
    monkeypatch.setattr(stored, "REMEMBERED_REQUESTS", LIMIT)


async def some(made: Coordinator, first: int, count: int) -> None:
    """Requests of all kinds: with a topic and without, with an id, polled for another node, left by their clients."""

    async def one(i: int) -> None:
        topic, id = (f"t{i}" if i % 2 else ""), (f"r{i}" if i % 3 else "")
        asked = request(f"question {i % 16}", candidates=2, strategy=Strategy.SIMILARITY, topic=topic, request_id=id)
        if i % 5 == 0:
            polled = request(f"question {i % 16}", topic=topic, request_id=f"p{i}")
            async with contextlib.aclosing(made.poll(polled, [1, 2], "other")) as ballots:
                async for _ in ballots:
                    pass
            return
        async with contextlib.aclosing(made.stream(asked)) as stream:
            async for event in stream:
                if i % 7 == 0 and isinstance(event, Wrote):
                    break

    for begin in range(first, first + count, 8):
        await asyncio.gather(*(one(i) for i in range(begin, begin + 8)))


async def idle(engine: Engine) -> None:
    """Wait until nothing is computed: what clients left ends a moment later, in the engine's thread."""
    async with asyncio.timeout(60):
        await asyncio.sleep(0.01)
        while engine.free_sequences < 8 or engine.load.queued:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_nothing_grows_with_the_number_of_requests() -> None:
    backend = FakeBackend(FakeSpec(answers=("one two", "three")), sequences=8)
    engine = Engine(lambda: backend, node="me", memory=1 << 11)
    await engine.start()
    store = Store()
    made = Swarm(None, engine, backend, store, [], 8)  # type: ignore[arg-type]
    made.coordinator = Coordinator("me", engine, made, store)
    try:
        await some(made.coordinator, 0, 160)
        await idle(engine)
        before = sizes(made.coordinator, engine)
        await some(made.coordinator, 160, 320)
        grown = {"": (0, 1)}
        end = time.monotonic() + 60
        # It is what it was, more or less what is under way, which ends; a leak would have made it three times as much.
        while grown and time.monotonic() < end:
            await idle(engine)
            after = sizes(made.coordinator, engine)
            grown = {name: (before[name], size) for name, size in after.items() if size > 1.5 * before[name] + LIMIT}
    finally:
        await engine.close()
    assert grown == {}
    assert after["Answered._held"] == LIMIT  # the look finds what is there
    assert after["Store._logs"] == LIMIT
    assert after["Prefixes._held"] > 0
