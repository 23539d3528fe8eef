"""Votes of nodes with different models: who takes part, what they weigh, what is learnt, what a peer cannot claim."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from scripted import Script, ScriptedPeer, Swarm, dies, events, hangs, request, says, sends, swarm

from node import wire
from node.api.http import votes
from node.coordinator import Planned
from node.core.record import LEAST, Record
from node.engine.fake import FakeSpec
from node.errors import InvalidRequest, NotFound, PeerUnavailable
from node.store import Standings
from node.types import EarlyStop, GenerateResult, Scope, Strategy
from node.v1 import vote_pb2

ALL = {"early_stop": EarlyStop.OFF}  # every candidate votes


def guest(made: Swarm, id: str, script: Script, model: str = "other", **of: Any) -> ScriptedPeer:
    return made.join(id, script, fingerprint=f"fingerprint of {model}", model=model, **of)


def known(**records: Record) -> Standings:
    """What a node holds of models, "fake" being its own (its fingerprint is found in the test)."""
    made = Standings()
    made.put({f"fingerprint of {name}": record for name, record in records.items()}, {})
    return made


def shares(result: GenerateResult) -> dict[str, int]:
    return {m.model: len(m.candidates) for m in result.outcome.models}


async def test_another_model_votes_too() -> None:
    async with swarm(**ALL) as made:
        peer = guest(made, "a", says("42", "41"))
        seen = await events(made, request(candidates=8))
        result = seen[-1]
        assert isinstance(result, GenerateResult)
        assert isinstance(seen[0], Planned)
        assert seen[0].shares == (("me", (1, 2, 3, 4)), ("a", (5, 6, 7, 8)))
        assert {c.id: c.model for c in result.candidates} == dict.fromkeys(range(1, 5), "fake") | dict.fromkeys(
            range(5, 9), "other"
        )
        assert result.outcome.confidence == pytest.approx(6 / 8)
        assert [(m.model, m.weight, m.candidates) for m in result.outcome.models] == [
            ("fake", 1.0, (1, 2, 3, 4)),
            ("other", 1.0, (5, 6, 7, 8)),
        ]
        wish = peer.wishes[0]
        assert wish.fingerprint == "fingerprint of other"
        assert wish.messages[0].content == "What is 6 * 7?", "text, which the peer's own template renders"
        assert not wish.params.logit_bias
        pb = wire.response_pb(result)
        assert [m.model for m in pb.outcome.models] == ["fake", "other"]
        assert pb.candidates[7].model == "other"
        assert [m["model"] for m in votes.outcome(result)["models"]] == ["fake", "other"], "over HTTP too"


async def test_who_may_be_a_guest() -> None:
    async with swarm(**ALL) as made:
        own, mlx = made.join("own", says("42")), guest(made, "mlx", says("41"), "tiny", backend="mlx")
        other = guest(made, "a", says("41"))

        async def took_part(**fields: Any) -> set[str]:
            result = await made.coordinator.generate(request(candidates=9, **fields))
            return {c.node for c in result.candidates}

        assert await took_part() == {"me", "own", "mlx", "a"}
        assert await took_part(strategy=Strategy.FASTEST) <= {"me", "own"}, "the smallest model would win"
        assert await took_part(params={"logit_bias": ((5, 1.0),)}) == {"me", "own"}, "token ids of one vocabulary"
        assert await took_part(scope=Scope.LOCAL) == {"me"}
        assert await took_part(params={"json_schema": "{}"}) == {"me", "own", "a"}, "MLX has no grammars"
        guest(made, "nameless", says("41")).info = own.info.__class__("nameless", "127.0.0.1:1", free_sequences=9)
        assert "nameless" not in await took_part()
        asked = len(other.wishes), len(mlx.wishes)
        result = await made.coordinator.generate(request(candidates=1))
        assert result.outcome.models == ()
        assert (len(other.wishes), len(mlx.wishes)) == asked, "one candidate is the model's that was asked"
        seen = await events(made, request(candidates=0))
        assert isinstance(seen[0], Planned)
        assert sum(len(ids) for _, ids in seen[0].shares) == 12


async def test_off_is_off() -> None:
    async with swarm(ensemble=False, **ALL) as made:
        peer, own = guest(made, "a", says("41")), made.join("b", says("42"))
        result = await made.coordinator.generate(request(candidates=8))
        assert {c.node for c in result.candidates} == {"me", "b"}
        assert not peer.wishes
        assert own.wishes


async def test_guests_have_half_of_the_candidates_and_a_poor_one_less() -> None:
    async with swarm(**ALL) as made:
        for i in range(4):
            guest(made, f"a{i}", says("41"), f"m{i}")
        result = await made.coordinator.generate(request(candidates=9))
        assert sum(n for model, n in shares(result).items() if model != "fake") == 4
        assert result.text == "42", "an equal number of guests that say one thing cannot outvote who was asked"
    standings = known(bad=Record(200, 20), good=Record(200, 180))
    async with swarm(standings=standings, **ALL) as made:
        standings.put({made.engine.info.fingerprint: Record(200, 180)}, {})
        guest(made, "a", says("41"), "bad")
        guest(made, "b", says("42"), "good")
        result = await made.coordinator.generate(request(candidates=12))
        assert shares(result) == {"fake": 6, "good": 5, "bad": 1}
        weights = {m.model: m.weight for m in result.outcome.models}
        assert weights["fake"] == pytest.approx(1.0)
        assert weights["bad"] == pytest.approx(LEAST)


async def test_weights_decide_and_a_peer_of_our_model_weighs_what_we_do() -> None:
    standings = known(other=Record(200, 60))
    async with swarm(standings=standings, **ALL) as made:
        standings.put({made.engine.info.fingerprint: Record(200, 150)}, {})
        made.join("same", says("41"))
        guest(made, "a", says("41"))
        result = await made.coordinator.generate(request(candidates=9))
        by_node = {c.node: [x.id for x in result.candidates if x.node == c.node] for c in result.candidates}
        weights = {b.id: m.weight for m in result.outcome.models for b in result.candidates if b.id in m.candidates}
        assert {weights[i] for i in by_node["me"]} == {weights[i] for i in by_node["same"]} == {1.0}
        light = weights[by_node["a"][0]]
        assert 0 < light < 0.5
        total = sum(weights.values())
        against = len(by_node["same"]) + len(by_node["a"]) * light
        assert result.outcome.clusters[0].weight == pytest.approx(max(len(by_node["me"]), against))
        assert result.outcome.confidence == pytest.approx(max(len(by_node["me"]), against) / total)


async def test_what_is_learnt_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "standings.json"
    async with swarm(standings=Standings(path), **ALL) as made:
        guest(made, "a", says("41", "42"))
        guest(made, "b", says("42"), "third")
        for i in range(8):
            await made.coordinator.generate(request(candidates=12, request_id=f"r{i}"))
        await made.coordinator.stop()
        ours = made.engine.info.fingerprint
        assert [(k.name, k.record.votes) for k in made.coordinator.standings.list()] == [
            ("fake", 8),
            ("other", 8),
            ("third", 8),
        ]
        again = Standings(path)
        assert again.list() == made.coordinator.standings.list()
        records = again.get([ours, "fingerprint of other", "fingerprint of third"])
        agreed = [r.agreed for r in records.values()]
        assert agreed[0] == agreed[2] == 8
        assert 2 < agreed[1] < 5, "a third or a half of its ballots each time"
    async with swarm(standings=again, **ALL) as made:
        guest(made, "a", says("41"))
        result = await made.coordinator.generate(request(candidates=8))
        assert [m.weight < 1 for m in result.outcome.models] == [False, True], "a restart forgets nothing"


async def test_votes_of_one_model_teach_nothing() -> None:
    async with swarm(**ALL) as made:
        made.join("a", says("42"))
        result = await made.coordinator.generate(request())
        assert result.outcome.models == ()
        assert made.coordinator.standings.list() == []


async def test_a_peer_states_no_weight_of_its_own() -> None:
    """Every ballot of a script claims a weight of 1e9, a key and a quality; a model's name is what the mesh knows."""
    async with swarm(**ALL) as made:
        guest(made, "a", says("41", model="the best model of all"))
        result = await made.coordinator.generate(request(candidates=9))
        assert result.text == "42"
        assert result.outcome.confidence == pytest.approx(5 / 9)
        assert {c.model for c in result.candidates if c.node == "a"} == {"other"}


@pytest.mark.parametrize(
    "script",
    [dies(0), dies(2), hangs(1), sends(lambda w: vote_pb2.PollResponse()), sends(lambda w: 1 // 0)],  # type: ignore[arg-type,return-value]
)
async def test_a_guest_that_fails_costs_its_own_candidates_and_no_quorum(script: Script) -> None:
    async with swarm(strict_quorum=True, **ALL) as made:
        guest(made, "a", script)
        result = await made.coordinator.generate(request(candidates=7), time.monotonic() + 2.0)
        assert result.text == "42"
        assert result.outcome.quorum
        assert [x.node for x in result.outcome.lost] == ["a"]


async def test_similarity_uses_our_own_embedder() -> None:
    async with swarm(FakeSpec(answers=("red green blue yellow",)), **ALL) as made:
        guest(made, "a", says("red green blue yellow !"))
        result = await made.coordinator.generate(request("Name colours.", candidates=4, strategy=Strategy.SIMILARITY))
        assert len(result.outcome.clusters) == 1, "both texts were embedded here, and mean the same there"
        assert result.outcome.warnings == ()


async def test_a_topic_keeps_the_text_of_another_model() -> None:
    async with swarm(**ALL) as made:
        peer = guest(made, "a", says("seven"))
        asked = request("Say a word.", candidates=8, topic="t", strategy=Strategy.MAJORITY)
        made.coordinator.standings.put({made.engine.info.fingerprint: Record(200, 20)}, {})
        made.coordinator.standings.put({"fingerprint of other": Record(200, 190)}, {})
        result = await made.coordinator.generate(asked)
        assert result.text == "seven"
        assert made.store.get("t").messages[-1].content == "seven"
        await made.coordinator.stop()
        assert [d.winner for d in peer.decided] == [result.outcome.winner]
        assert made.engine.free_sequences == made.sequences
        more = await made.coordinator.generate(request("And again.", candidates=8, topic="t", append=True))
        assert more.version.turn == 2
        assert [m.content for m in peer.wishes[1].messages] == ["Say a word.", "seven", "And again."]


# ---- a model that is named -------------------------------------------------------------------------------------------


async def test_a_model_that_is_named_is_the_only_one() -> None:
    async with swarm(**ALL) as made:
        other, third = guest(made, "a", says("41")), guest(made, "b", says("40"), "third")
        same = made.join("c", says("42"))
        result = await made.coordinator.generate(request(candidates=6, model="fake"))
        assert {c.node for c in result.candidates} == {"me", "c"}
        result = await made.coordinator.generate(request(candidates=6, model="other"))
        assert {c.node for c in result.candidates} == {"a"}
        assert (result.text, result.outcome.finished, result.outcome.models) == ("41", 6, ())
        assert not third.wishes
        assert len(same.wishes) == len(other.wishes) == 1
        assert result.usage.candidates == 18
        with pytest.raises(
            NotFound, match="'gpt' is not loaded here; this node has 'fake', its peers 'other', 'third'"
        ):
            await made.coordinator.generate(request(model="gpt"))
        with pytest.raises(NotFound, match="'other' is not loaded here"):
            await made.coordinator.generate(request(model="other", scope=Scope.LOCAL))
        assert made.engine.load.queued == 0


async def test_a_named_model_whose_only_node_fails() -> None:
    async with swarm(**ALL) as made:
        peer = guest(made, "a", dies(0))
        with pytest.raises(PeerUnavailable, match="nobody listens there"):
            await made.coordinator.generate(request(model="other"))
        peer.script = dies(4, "41")
        result = await made.coordinator.generate(request(model="other"))
        assert (result.text, result.outcome.finished) == ("41", 4)

        async def refuses(_: vote_pb2.PollRequest) -> Any:
            raise InvalidRequest("the prompt is 9 tokens and a sequence holds 8")
            yield

        peer.script = refuses
        with pytest.raises(InvalidRequest, match="a sequence holds 8"):
            await made.coordinator.generate(request(model="other"))


async def test_a_node_refuses_a_poll_for_another_model() -> None:
    async with swarm() as made:
        with pytest.raises(NotFound, match="another model by now"):
            async for _ in made.coordinator.poll(request(), [1], "x", fingerprint="of another"):
                pass
        found = [e async for e in made.coordinator.poll(request(), [1], "x", fingerprint=made.engine.info.fingerprint)]
        assert len(found) == 1
        await asyncio.sleep(0)


async def test_four_nodes_of_two_models_learn_which_is_the_better_one() -> None:
    """Two nodes each: one model is right nine times in ten, the other three times, and what is wrong differs."""
    rng = random.Random(5)

    def mostly(right: float) -> Script:
        async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
            texts = ["42" if rng.random() < right else str(rng.randrange(1000, 9999)) for _ in wish.candidates]
            async for event in says(*texts)(wish):
                yield event

        return script

    spec = FakeSpec(answers=(*["42"] * 9, "7"))
    async with swarm(spec, **ALL) as made:
        made.join("good", mostly(0.9))
        guest(made, "bad", mostly(0.3)), guest(made, "worse", mostly(0.3))
        weights: list[float] = []
        right = 0
        for i in range(80):
            result = await made.coordinator.generate(request(candidates=8, params={"seed": i}))
            assert {c.node for c in result.candidates} <= {"me", "good", "bad", "worse"}
            right += result.text == "42"
            weights.append(min(m.weight for m in result.outcome.models))
        assert right >= 78
        assert weights[0] == 1.0
        # The ratio of log odds of 0.9 and 0.3 with four answers is 0.1; what is not known is shrunk to the mean.
        assert LEAST <= weights[-1] < 0.4
        late = weights[-20:]
        assert max(late) - min(late) < 0.15, "it has settled"
