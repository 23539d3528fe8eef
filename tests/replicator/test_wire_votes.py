"""Votes between nodes on real sockets with mutual TLS: how often a peer is called, and what it spends in vain."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nodes import Node, nodes

from node.coordinator import Voted, claims
from node.engine.fake import FakeBackend, FakeSpec
from node.replicator import Options, turns
from node.types import GenerateRequest, GenerateResult, Message, SamplingParams, Strategy

# Of replication: the KV of a topic, on its way to who keeps it when the turn is over.
AFTERWARDS = ("Offer", "Push")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a peer may take longer than a person should wait for it."""
    monkeypatch.setattr(turns, "ACKNOWLEDGE_S", 10.0)
    monkeypatch.setattr(turns, "FRESH_S", 10.0)
    monkeypatch.setattr(claims, "CLAIM_S", 10.0)


def fake(spec: FakeSpec) -> dict[str, Any]:
    return {"make": lambda: FakeBackend(spec, sequences=16, context=1024)}


def trusting(node: Node) -> None:
    """Its peers have room, as their own word would say."""
    for peer in node.mesh.peers_.values():
        peer.info = replace(peer.info, free_sequences=16, decode_tokens_per_s=100.0)


def question(**fields: Any) -> GenerateRequest:
    return GenerateRequest((Message("user", "What is 6 * 7?"),), **fields)


async def test_a_peer_is_called_at_most_twice_for_a_vote(tmp_path: Path) -> None:
    """Once without a topic. With one, who keeps it learns the outcome with the turn, the others by Decide. Replication
    asks up to three for newer turns before, and these note who was given the request."""
    options = Options(replicas=1)
    async with nodes(tmp_path, 4, options, **fake(FakeSpec(answers=("42", "41")))) as made:
        a, *others = made
        trusting(a)
        vote = {"candidates": 12, "strategy": Strategy.QUALITY, "params": SamplingParams(max_tokens=8)}
        await a.coordinator.generate(question(**vote, request_id="q"))
        assert [of_a_vote(n) for n in others] == [{"asked": 1}] * 3
        topic = next(t for t in map(str, range(100)) if len(a.replicator.turns.witnesses(t)) == 2)  # we are the third
        keepers = {p.id for p in a.replicator.turns.keepers(topic)}
        noting = {p.id for p in a.replicator.turns.witnesses(topic)}
        assert keepers < noting
        for turn in (1, 2):
            for node in others:
                node.calls.clear()
            wish = question(**vote, topic=topic, append=turn > 1, request_id=f"r{turn}")
            result = await a.coordinator.generate(wish)
            await a.coordinator.stop()
            assert result.version.turn == turn
            assert result.outcome.finished == 12
            for node in others:
                told = "Append" if node.id in keepers else "Decide"
                # Of a topic that is not known here all are asked for it.
                pulls = {"Pull": 1} if node.id in noting or turn == 1 else {}
                assert of_a_vote(node) == {**pulls, "asked": 1, told: 1}
                assert not node.coordinator._polled, "it knows who won"
        assert all(n.store.version(topic) == result.version for n in others if n.id in keepers)


def of_a_vote(node: Node) -> dict[str, int]:
    """The calls that came to a node, by method. Whether it was asked for one candidate or for more is no matter."""
    rest = {k: n for k, n in node.calls.items() if k not in ("Poll", "Cast", *AFTERWARDS)}
    return {**rest, "asked": node.calls["Poll"] + node.calls["Cast"]}


async def test_a_request_that_two_nodes_were_given_is_answered_once(tmp_path: Path) -> None:
    """Both at once, and the second while the first is at work or is done, over real channels."""
    spec = FakeSpec(answers=("42", "41"), tokens_per_s=50)
    async with nodes(tmp_path, 4, Options(replicas=1), **fake(spec)) as made:
        for i, pause in enumerate((0.0, 0.02, 0.3)):
            for pair in ((0, 1), (3, 1)):
                one, two = made[pair[0]], made[pair[1]]
                wish = question(topic=f"t{i} {pair}", request_id=f"r{i} {pair}", candidates=3)
                first = asyncio.create_task(one.coordinator.generate(wish))
                await asyncio.sleep(pause)
                second = await two.coordinator.generate(wish)
                assert (second.text, second.version) == ((await first).text, (await first).version)
                logs = [n.store.log(wish.topic) for n in made if n.store.version(wish.topic).turn]
                assert all(len(log.path()) == 1 and not log.branches() for log in logs)


async def test_what_peers_spend_after_the_decision(tmp_path: Path) -> None:
    """Three answers of four are short and agree, the fourth is long: it is stopped everywhere within a step.

    All nodes are in this process: if it stands still for some steps between the decision and the news of it, they
    are spent, but hardly every time.
    """
    spec = FakeSpec(answers=("42", "42", "42", " ".join(["w"] * 500)), tokens_per_s=5)
    async with nodes(tmp_path, 3, Options(replicas=0), **fake(spec)) as made:
        trusting(made[0])
        for left in reversed(range(3)):
            overspent = await _spent_too_much(*made)
            if not overspent:
                return
            assert left, overspent


async def _spent_too_much(a: Node, *others: Node) -> str:
    """A vote that is stopped early; what a peer wrote beyond the step that ran when it was decided, and one that began
    while the news was on its way."""
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
    more = [(n.id, spent(n)[0] - tokens, running) for n, (tokens, running) in zip(others, at_decision, strict=True)]
    return ", ".join(f"{id}: {wrote} tokens of {ran} candidates" for id, wrote, ran in more if wrote > 2 * ran)


def spent(node: Node) -> tuple[int, int]:
    """Tokens that a node's candidates have drawn, and how many candidates write."""
    scheduler = node.engine._scheduler
    assert scheduler is not None
    return scheduler.decoded_tokens, sum(len(r.branches) for r in scheduler._running.values())
