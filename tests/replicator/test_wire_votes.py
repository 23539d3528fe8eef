"""Votes between nodes on real sockets with mutual TLS: how often a peer is called, and what it spends in vain."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from nodes import Node, nodes

from node.coordinator import Voted
from node.engine.fake import FakeBackend, FakeSpec
from node.replicator import Options
from node.types import GenerateRequest, GenerateResult, Message, SamplingParams, Strategy

# Not Pull, by which a topic's later turns and its KV are looked for before.
OF_A_VOTE = ("Poll", "Decide", "Append")


def fake(spec: FakeSpec) -> dict[str, Any]:
    return {"make": lambda: FakeBackend(spec, sequences=16, context=1024)}


def trusting(node: Node) -> None:
    """Its peers have room, as their own word would say."""
    for peer in node.mesh.peers_.values():
        peer.info = replace(peer.info, free_sequences=16, decode_tokens_per_s=100.0)


def question(**fields: Any) -> GenerateRequest:
    return GenerateRequest((Message("user", "What is 6 * 7?"),), **fields)


async def test_a_peer_is_called_at_most_twice_for_a_vote(tmp_path: Path) -> None:
    """Once without a topic. With one, who keeps it learns the outcome with the turn, the others by Decide."""
    options = Options(replicas=1)
    async with nodes(tmp_path, 3, options, **fake(FakeSpec(answers=("42", "41")))) as made:
        a, *others = made
        trusting(a)
        vote = {"candidates": 12, "strategy": Strategy.QUALITY, "params": SamplingParams(max_tokens=8)}
        await a.coordinator.generate(question(**vote))
        assert [dict(n.calls) for n in others] == [{"Poll": 1}] * 2
        keeper = next(n for n in others if n.id in a.replicator.holders("t"))
        (other,) = (n for n in others if n is not keeper)
        for turn in (1, 2):
            for node in others:
                node.calls.clear()
            result = await a.coordinator.generate(question(**vote, topic="t", append=turn > 1))
            await a.coordinator.stop()
            assert result.version.turn == turn
            assert result.outcome.finished == 12
            assert of_a_vote(keeper) == {"Poll": 1, "Append": 1}
            assert of_a_vote(other) == {"Poll": 1, "Decide": 1}
            assert not keeper.coordinator._polled, "it knows who won"
            assert not other.coordinator._polled, "it knows who won"
        assert keeper.store.version("t") == result.version


def of_a_vote(node: Node) -> Counter[str]:
    return Counter({name: node.calls[name] for name in OF_A_VOTE if node.calls[name]})


async def test_what_peers_spend_after_the_decision(tmp_path: Path) -> None:
    """Three answers of four are short and agree, the fourth is long: it is stopped everywhere within a step."""
    spec = FakeSpec(answers=("42", "42", "42", " ".join(["w"] * 500)), tokens_per_s=50)
    async with nodes(tmp_path, 3, Options(replicas=0), **fake(spec)) as made:
        a, *others = made
        trusting(a)
        last: Any = None
        at_decision: list[tuple[int, int]] = []
        params = SamplingParams(max_tokens=600, seed=4)
        async for last in a.coordinator.stream(question(candidates=36, strategy=Strategy.MAJORITY, params=params)):
            if isinstance(last, Voted):  # the last one decides
                at_decision = [spent(n) for n in others]
        assert isinstance(last, GenerateResult)
        assert last.outcome.stopped_early
        assert sum(running for _, running in at_decision) > 0, "somebody was still writing on a peer"
        async with asyncio.timeout(60):
            while any(n.engine.free_sequences < 16 for n in others):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for node, (tokens, running) in zip(others, at_decision, strict=True):
            # The step that ran when it was decided, and one that began while the news was on its way.
            assert spent(node)[0] - tokens <= 2 * running, node.id


def spent(node: Node) -> tuple[int, int]:
    """Tokens that a node's candidates have drawn, and how many candidates write."""
    scheduler = node.engine._scheduler
    assert scheduler is not None
    return scheduler.decoded_tokens, sum(len(r.branches) for r in scheduler._running.values())
