"""One turn for one request, whichever nodes are given it: every order of claims, delays and failures."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from node.coordinator.claims import CLAIM_S, ROUNDS, Claims
from node.errors import PeerUnavailable
from node.replicator.turns import WITNESSES


@dataclass
class World:
    """Nodes that were given the same request. `log` is what they could find of its answer."""

    rng: random.Random
    nodes: dict[str, Claims] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    working: int = 0
    overlaps: int = 0
    dead: set[str] = field(default_factory=set)

    @property
    def witnesses(self) -> list[str]:
        return list(self.nodes)[:WITNESSES]

    async def while_others_go_on(self) -> None:
        for _ in range(self.rng.randrange(12)):
            await asyncio.sleep(0)

    async def given(self, id: str, fails: bool) -> None:
        """What a coordinator does, in short."""
        await self.while_others_go_on()
        claims = self.nodes[id]
        peers: list[Any] = [Remote(self, other, id) for other in self.nodes if other != id]
        async with claims.claim("r") as claim:
            told = await asyncio.gather(*(peer.note("r") for peer in peers if peer.id in self.witnesses))
            if self.log:
                return
            given = {other for each in told for other in each} | {*claims.note("r", id)}
            for _ in range(ROUNDS + len(peers)):
                ahead = await claims.first(claim, given, peers)
                if ahead is None:
                    await self.while_others_go_on()
                    break
                await claims.wait(claim, ahead, None)
                if self.log:
                    return
            if self.log:
                return
            self.working += 1
            self.overlaps += self.working > 1
            await self.while_others_go_on()
            self.working -= 1
            if not fails:
                self.log.append(id)


@dataclass
class Remote:
    """A peer as another node sees it, with a network in between."""

    world: World
    id: str
    caller: str

    async def note(self, request_id: str) -> list[str]:
        await self.world.while_others_go_on()
        if self.id in self.world.dead:
            return []
        said = self.world.nodes[self.id].note(request_id, self.caller)
        await self.world.while_others_go_on()
        return said

    async def claim(self, request_id: str, *, waits: bool, timeout_s: float) -> bool:
        await self.world.while_others_go_on()
        if self.id in self.world.dead:
            raise PeerUnavailable("gone")
        said = await self.world.nodes[self.id].answer(request_id, self.caller, waits)
        await self.world.while_others_go_on()
        return said


@pytest.mark.parametrize("count", [2, 3, 5, 8])
async def test_one_works_and_all_have_its_answer(count: int) -> None:
    for seed in range(150):
        ids = [f"n{i}" for i in range(count)]
        world = World(random.Random(seed))
        world.nodes = {id: Claims(id) for id in ids}
        async with asyncio.timeout(60):
            await asyncio.gather(*(world.given(id, fails=False) for id in ids))
        assert (len(world.log), world.overlaps) == (1, 0), f"seed {seed}"
        assert not any(c._claims for c in world.nodes.values())


async def test_where_the_first_fails_another_one_begins() -> None:
    for seed in range(150):
        ids = [f"n{i}" for i in range(4)]
        world = World(random.Random(seed))
        world.nodes = {id: Claims(id) for id in ids}
        bad = set(world.rng.sample(ids, 2))
        async with asyncio.timeout(60):
            await asyncio.gather(*(world.given(id, fails=id in bad) for id in ids))
        assert (len(world.log), world.overlaps) == (1, 0), f"seed {seed}"


async def test_a_dead_peer_is_not_waited_for() -> None:
    world = World(random.Random(1))
    world.nodes = {id: Claims(id) for id in ("a", "b")}
    world.dead = {"a"}
    async with asyncio.timeout(CLAIM_S):
        await world.given("b", fails=False)
    assert world.log == ["b"]


async def test_a_claim_that_waits_ends_with_who_is_at_work() -> None:
    claims = Claims("a")
    assert not await claims.answer("r", "z", waits=True), "nobody is at work on it"
    async with claims.claim("r") as claim:
        assert await claims.first(claim, (), ()) is None
        assert await claims.answer("r", "0", waits=False)
        waiting = asyncio.create_task(claims.answer("r", "0", waits=True))
        begun = time.monotonic()
        await asyncio.sleep(0.02)
        assert not waiting.done()
    assert not await waiting
    assert time.monotonic() - begun < 60
