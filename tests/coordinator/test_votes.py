"""Votes over a node and its peers: what peers send is counted; what they may not do costs nobody but them."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncGenerator

import pytest
from scripted import ENDLESS, ballot, dies, events, hangs, request, says, sends, swarm, tally

from node import wire
from node.coordinator import Counted, Planned, Voted, Wrote
from node.coordinator import count as count_module
from node.core import consensus
from node.core.consensus import Vote
from node.engine.fake import FakeSpec
from node.errors import BackendError, DeadlineExceeded, InvalidRequest, NoQuorum, NotFound, Overloaded
from node.types import EarlyStop, FinishReason, GenerateResult, Scope, Strategy, Tool
from node.v1 import types_pb2, vote_pb2

ALL = {"early_stop": EarlyStop.OFF}  # every candidate votes


async def test_alone() -> None:
    async with swarm(**ALL) as made:
        seen = await events(made, request(candidates=4))
        result = seen[-1]
        assert isinstance(result, GenerateResult)
        assert (result.text, result.finish_reason) == ("42", FinishReason.STOP)
        assert result.outcome.confidence == 1
        assert [c.id for c in result.candidates] == [1, 2, 3, 4]
        assert result.answers == dict.fromkeys(range(1, 5), "42")
        assert result.usage.completion == 2, "a word and the end"
        assert result.usage.candidates == 8
        assert result.usage.prompt > 0
        assert result.timings.total_ms >= result.timings.first_token_ms > 0
        assert isinstance(seen[0], Planned)
        assert seen[0].shares == (("me", (1, 2, 3, 4)),)
        written = "".join(e.text for e in seen if isinstance(e, Wrote) and e.candidate == 2)
        assert written == "42"
        assert [e.ballot.candidate.id for e in seen if isinstance(e, Voted)] == [1, 2, 3, 4]
        assert [e.tally.finished for e in seen if isinstance(e, Counted)] == [4]


async def test_the_engine_is_told_how_many_ballots_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    async with swarm(sequences=1, early_stop=EarlyStop.EXACT) as made:
        monkeypatch.setattr(made.engine, "expect", lambda job, ballots: told.append(ballots))
        result = await made.coordinator.generate(request(candidates=9))
        assert result.outcome.finished == 5
    assert told == [4, 3, 2, 1, 0]


async def test_the_vote_is_over_all_ballots_pooled() -> None:
    """Two nodes for 41 by 2:1 each, one for 42 by 3:0: pooled, 42 has most."""
    async with swarm(**ALL) as made:
        a, b = made.join("a", says("41", "41", "42")), made.join("b", says("42", "41", "41"))
        result = await made.coordinator.generate(request(candidates=9))
        assert {len(p.wishes[0].candidates) for p in (a, b)} == {3}
        assert result.answers == {1: "42", 2: "42", 3: "42", 4: "41", 5: "41", 6: "42", 7: "42", 8: "41", 9: "41"}
        assert result.text == "42"
        assert result.outcome.confidence == pytest.approx(5 / 9)
        assert (result.outcome.planned, result.outcome.finished, result.outcome.lost) == (9, 9, ())
        assert result.outcome.warnings == ()
        assert {c.id: c.node for c in result.candidates}[4] == "a", "the node is who sent it, not who it says"
        pooled = Vote(Strategy.MAJORITY, range(1, 10), early=False)
        for event in await events(made, request(candidates=9)):
            if isinstance(event, Voted):
                pooled.add(event.ballot)
        assert consensus.elect(pooled.tally()).confidence == result.outcome.confidence


async def test_what_a_peer_is_asked() -> None:
    async with swarm(**ALL) as made:
        peer = made.join("a", says("42"))
        asked = request(candidates=2, tools=(Tool("add"),), params={"temperature": 0.5, "stop": ("x",)})
        await made.coordinator.generate(asked, time.monotonic() + 10)
        wish, timeout = peer.wishes[0], peer.timeouts[0]
        assert list(wish.candidates) == [2]
        assert (wish.coordinator, wish.strategy) == ("me", "majority")
        assert wish.params.seed == 7
        assert list(wish.params.stop) == ["x"]
        assert wish.messages[0].content == "What is 6 * 7?"
        assert wish.tools[0].name == "add"
        assert timeout is not None
        assert 9 < timeout < 10
        await made.coordinator.generate(request(candidates=2, params={"seed": None}))
        assert peer.wishes[1].params.HasField("seed"), "all nodes sample from one seed"


async def test_who_is_asked() -> None:
    async with swarm(ensemble=False, **ALL) as made:
        made.join("other-model", says("41"), fingerprint="other")
        full = made.join("full", says("41"), free=0)
        peer = made.join("a", says("42"))
        result = await made.coordinator.generate(request())
        assert {c.node for c in result.candidates} == {"me", "a"}
        result = await made.coordinator.generate(request(scope=Scope.LOCAL))
        assert {c.node for c in result.candidates} == {"me"}
        assert len(peer.wishes) == 1
        assert not full.wishes
        seen = await events(made, request(candidates=0))
        assert isinstance(seen[0], Planned)
        assert sum(len(ids) for _, ids in seen[0].shares) == 12, "four for each node of this model"


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_peer_that_dies_costs_what_it_had_not_sent(after: int) -> None:
    async with swarm(**ALL) as made:
        made.join("a", dies(after, "41"))
        result = await made.coordinator.generate(request())
        assert result.text == "42"
        assert result.outcome.finished == 3 + after
        lost = [(x.node, x.candidates) for x in result.outcome.lost]
        assert lost == ([("a", tuple(range(4 + after, 7)))] if after < 3 else [])
        assert result.outcome.quorum
        if after < 3:
            assert "nobody listens" in result.outcome.lost[0].reason


async def test_a_peer_that_ends_without_all_its_ballots() -> None:
    async with swarm(**ALL) as made:
        made.join("a", sends(lambda w: ballot(w.candidates[0], "42")))
        result = await made.coordinator.generate(request())
        assert result.outcome.finished == 4
        assert [(x.node, x.candidates) for x in result.outcome.lost] == [("a", (5, 6))]


LIES = {
    "an id not asked for": (sends(lambda w: ballot(99, "41")), "not asked for"),
    "another peer's id": (sends(lambda w: ballot(1, "41")), "not asked for"),
    "the id 0": (sends(lambda w: ballot(0, "41")), "not asked for"),
    "a ballot twice": (sends(*[lambda w: ballot(w.candidates[0], "42")] * 1000), "had sent"),
    "an oversized text": (sends(lambda w: ballot(w.candidates[0], "4" * (1 << 21))), "2097152 bytes"),
    "an oversized call": (
        sends(lambda w: ballot(w.candidates[0], "", tool_calls=[types_pb2.ToolCall(name="x" * (1 << 21))])),
        "2097152 bytes",
    ),
    "a call of a tool not offered": (
        sends(lambda w: ballot(w.candidates[0], "", tool_calls=[types_pb2.ToolCall(name="rm", arguments="{}")])),
        "not offered",
    ),
    "a candidate that was cut off": (
        sends(lambda w: ballot(w.candidates[0], "41", finish_reason="deadline")),
        "did not finish",
    ),
    "a defect of ours": (sends(lambda w: 1 // 0), "internal error: ZeroDivisionError"),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_costs_the_liar_its_part(lie: str) -> None:
    script, reason = LIES[lie]
    async with swarm(**ALL) as made:
        made.join("liar", script)
        made.join("honest", says("42"))
        result = await made.coordinator.generate(request())
        assert result.text == "42"
        assert [x.node for x in result.outcome.lost] == ["liar"]
        assert reason in result.outcome.lost[0].reason
        assert {c.node for c in result.candidates if c.id in (1, 2, 5, 6)} == {"me", "honest"}


def entries(n: int = 1, top: int = 0, token: str = "42") -> list[types_pb2.TokenLogprob]:
    alternatives = [types_pb2.TopLogprob(token=str(i), logprob=-2.0, bytes=b"x", id=i) for i in range(top)]
    each = types_pb2.TokenLogprob(token=token, logprob=-0.5, bytes=b"42", id=9, top_logprobs=alternatives)
    return [each] * n


async def test_log_probabilities_come_from_peers_too_when_they_are_asked_for() -> None:
    async with swarm(**ALL) as made:
        peer = made.join("a", says("42", logprobs=entries(2, top=3)))
        result = await made.coordinator.generate(request(params={"logprobs": True, "top_logprobs": 3}))
        assert (peer.wishes[0].params.logprobs, peer.wishes[0].params.top_logprobs) == (True, 3)
        for candidate in result.candidates:
            assert [len(t.top) for t in candidate.logprobs] == [3, 3] if candidate.node == "a" else [3]
        theirs = next(c for c in result.candidates if c.node == "a").logprobs[0]
        assert (theirs.token, theirs.logprob, theirs.bytes, theirs.id, theirs.top[2].id) == ("42", -0.5, b"42", 9, 2)
        ours = next(c for c in result.candidates if c.node == "me").logprobs[0]
        assert (ours.token, ours.bytes, ours.logprob) == ("42", b"42", pytest.approx(-0.1))
        unasked = await made.coordinator.generate(request())
        assert all(c.logprobs == () for c in unasked.candidates)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (entries(11), "11 log probabilities"),
        (entries(top=3), "3 tokens in place of one"),
        (entries(token="x" * 300), "more than 256 bytes"),
    ],
)
async def test_a_peer_that_sends_too_many_log_probabilities(sent: list[types_pb2.TokenLogprob], why: str) -> None:
    async with swarm(**ALL) as made:
        made.join("liar", says("42", logprobs=sent))
        asked = request(params={"logprobs": True, "top_logprobs": 2, "max_tokens": 10})
        result = await made.coordinator.generate(asked)
        assert why in result.outcome.lost[0].reason
        assert {c.node for c in result.candidates} == {"me"}


async def test_more_log_probabilities_than_an_answer_holds_are_refused() -> None:
    async with swarm(**ALL) as made:
        asked = request(candidates=64, params={"logprobs": True, "top_logprobs": 20, "max_tokens": 4096})
        with pytest.raises(InvalidRequest, match=r"64 candidates of 4096 tokens .* at most 500000"):
            await made.coordinator.generate(asked)


async def test_numbers_that_make_no_sense_are_harmless() -> None:
    async with swarm(**ALL) as made:
        nonsense = {"tokens": 2**32 - 1, "mean_logprob": math.nan, "latency_ms": -math.inf, "finish_reason": "because"}
        made.join("a", says("41", **nonsense))
        result = await made.coordinator.generate(request(strategy=Strategy.CONFIDENCE, params={"max_tokens": 10}))
        assert result.text == "42"
        assert result.outcome.confidence > 0.99, "no confidence at all weighs next to nothing"
        theirs = [c for c in result.candidates if c.node == "a"]
        assert [(c.tokens, c.latency_ms, c.finish_reason) for c in theirs] == [(10, 0.0, FinishReason.STOP)] * 3
        assert result.usage.candidates == 3 * 2 + 3 * 10


def wrong(wish: vote_pb2.PollRequest, **change: object) -> vote_pb2.PollResponse:
    right = tally(wish, [ballot(i, "41") for i in wish.candidates])
    for name, value in change.items():
        setattr(right.tally, name, value)
    return right


@pytest.mark.parametrize(
    "bogus",
    [
        lambda w: wrong(w, finished=2**32 - 1),
        lambda w: wrong(w, strategy="nonsense" * 1000),
        lambda w: wrong(w, strategy="fastest"),
        lambda w: vote_pb2.PollResponse(tally=types_pb2.Tally(strategy="majority", planned=3, finished=3)),
        lambda w: vote_pb2.PollResponse(tally={"clusters": [{"medoid_id": 1, "members": [1] * 9, "weight": math.nan}]}),
        lambda w: vote_pb2.PollResponse(
            tally={
                "strategy": "majority",
                "planned": 3,
                "finished": 3,
                "clusters": [{"key": "42", "count": 3, "weight": 3, "medoid_id": 4, "members": [4, 5, 6]}],
            }
        ),
    ],
    ids="finished unknown-strategy other-strategy empty nan stuffed".split(),
)
async def test_a_tally_that_does_not_add_up_is_not_used(bogus) -> None:  # type: ignore[no-untyped-def]
    # Our own part is the slow one: once the last ballot has come, nobody waits for a tally.
    async with swarm(FakeSpec(answers=("42",), tokens_per_s=80), **ALL) as made:
        made.join("a", sends(*[lambda w, i=i: ballot(w.candidates[i], "41") for i in range(3)], bogus))
        result = await made.coordinator.generate(request())
        assert result.outcome.finished == 6, "the ballots count"
        assert result.outcome.confidence == 0.5
        assert len(result.outcome.warnings) == 1
        assert "tally of node a was not used" in result.outcome.warnings[0]
        assert len(result.outcome.warnings[0]) < 200


async def test_nothing_is_read_after_the_tally() -> None:
    async def endless(wish: vote_pb2.PollRequest):  # type: ignore[no-untyped-def]
        sent = [ballot(i, "42") for i in wish.candidates]
        for each in sent:
            yield each
        while True:
            yield tally(wish, sent)

    async with swarm(**ALL) as made:
        made.join("a", endless)
        async with asyncio.timeout(60):
            result = await made.coordinator.generate(request())
        assert (result.outcome.finished, result.outcome.warnings) == (6, ())


async def test_deciding_early_stops_everyone() -> None:
    """Nine of fifteen agree; our own three and those of a peer that hangs could change nothing."""
    async with swarm(ENDLESS, early_stop=EarlyStop.EXACT) as made:
        slow = made.join("slow", hangs())
        for id in "abc":
            made.join(id, says("42", delay_s=0.02))
        result = await made.coordinator.generate(request(candidates=15, params={"max_tokens": 100_000}))
        assert result.outcome.stopped_early
        assert result.outcome.lost == (), "what is cancelled by decision is no loss"
        assert result.outcome.finished == 8
        assert result.text == "42"
        assert slow.open == 0
        assert result.usage.candidates > 8 * 3, "what our own had spent is counted"


async def test_a_decision_stops_every_node_within_a_step() -> None:
    """Short answers agree and long ones are open, here and on a peer with an engine of its own: what is spent later?"""
    spec = FakeSpec(answers=("42", "42", "42", " ".join(["w"] * 500)), tokens_per_s=50)
    async with swarm(spec) as made, swarm(spec) as other:

        async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
            poll = other.coordinator.poll(wire.poll_request(wish), list(wish.candidates), "me", None, wish.wave)
            async with contextlib.aclosing(poll) as events:
                async for event in events:
                    yield vote_pb2.PollResponse(ballots=wire.ballots_pb(event.ballots, event.tally))

        made.join("a", script)
        at_decision: list[int] = []
        last = None
        async for event in made.coordinator.stream(request(candidates=24, params={"seed": 4})):
            if isinstance(event, Voted):  # the last one decided
                at_decision = [made.backend._decodes, other.backend._decodes]
            last = event
        assert isinstance(last, GenerateResult)
        assert last.outcome.stopped_early
        assert any("w w" in c.text for c in last.candidates) is False
        await made.settled()
        await other.settled()
        spent = [made.backend._decodes - at_decision[0], other.backend._decodes - at_decision[1]]
        assert max(spent) <= 2, spent  # the step that ran, and one that began before the news came


async def test_fastest_takes_the_first() -> None:
    async with swarm(ENDLESS) as made:
        made.join("quick", says("41"))
        made.join("slow", hangs())
        result = await made.coordinator.generate(request(strategy=Strategy.FASTEST, params={"max_tokens": 100_000}))
        assert result.text == "41"
        assert result.outcome.finished == 1
        assert any("no consensus" in w for w in result.outcome.warnings)


async def test_a_ballot_after_the_decision_is_spent_but_does_not_vote() -> None:
    """Peers send six of nine ballots at once: five decide."""
    async with swarm(ENDLESS, early_stop=EarlyStop.EXACT) as made:
        made.join("a", says("42"))
        made.join("b", says("42"))
        result = await made.coordinator.generate(request(candidates=9, params={"max_tokens": 100_000}))
        assert result.outcome.stopped_early
        assert result.outcome.finished == len(result.candidates) == 5


async def test_our_own_failure_is_outvoted_by_peers_that_live() -> None:
    async with swarm(FakeSpec(fail_after=20), **ALL) as made:  # start-up takes 16
        made.join("a", says("42", delay_s=0.05))
        for _ in range(3):
            result = await made.coordinator.generate(request(candidates=6))
        assert result.text == "42"
        assert [(x.node, x.candidates) for x in result.outcome.lost] == [("me", (1, 2, 3))]
        assert "fails after" in result.outcome.lost[0].reason


async def test_our_own_failure_alone_is_what_the_client_sees() -> None:
    async with swarm(FakeSpec(fail_after=16)) as made:
        with pytest.raises(BackendError, match="fails after"):
            await made.coordinator.generate(request())


async def test_when_everyone_fails() -> None:
    async with swarm(FakeSpec(fail_after=16)) as made:
        made.join("a", dies(0))
        with pytest.raises(NoQuorum, match=r"0 of 6 .*me: .*fails after.*; a: .*nobody listens"):
            await made.coordinator.generate(request())


async def test_when_nobody_has_room() -> None:
    async with swarm(ENDLESS, queue_limit=1, sequences=4) as made:
        slow = request(candidates=4, params={"max_tokens": 100_000})
        running = []
        async with asyncio.timeout(60):
            for queued in (0, 1):
                running.append(asyncio.create_task(made.coordinator.generate(slow)))
                while made.engine.free_sequences or made.engine.load.queued < queued:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        with pytest.raises(Overloaded, match="--queue"):
            await made.coordinator.generate(request())
        made.join("a", dies(0))
        with pytest.raises(Overloaded, match="no node has room"):
            await made.coordinator.generate(request())
        made.alive[0].script = says("42")
        result = await made.coordinator.generate(request(candidates=4))
        assert {c.node for c in result.candidates} == {"a"}, "a peer that has room answers"
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_request_that_cannot_be_served_fails_at_once() -> None:
    async with swarm() as made:
        made.join("a", hangs())
        async with asyncio.timeout(60):
            with pytest.raises(InvalidRequest, match=r"the prompt is \d+ tokens and a sequence holds 4096"):
                await made.coordinator.generate(request("word " * 5000))
            with pytest.raises(InvalidRequest, match=r"\d+ characters and a sequence holds 4096 tokens"):
                await made.coordinator.generate(request("word " * 500_000))
            with pytest.raises(NotFound, match="topic 'none' is unknown"):
                await made.coordinator.generate(request(topic="none", append=True))
            with pytest.raises(NotFound, match="model 'gpt'"):
                await made.coordinator.generate(request(model="gpt"))


# ---- deadlines ------------------------------------------------------------------------------------------------------


async def test_peers_that_hang_are_left_behind_at_the_deadline() -> None:
    async with swarm(**ALL) as made:
        peer = made.join("a", hangs(1))
        result = await made.coordinator.generate(request(), time.monotonic() + 1.0)
        assert (result.text, result.outcome.finished) == ("42", 4)
        assert [(x.node, x.candidates, x.reason) for x in result.outcome.lost] == [
            ("a", (5, 6), "did not finish in time")
        ]
        assert peer.open == 0


async def test_peers_that_hang_are_left_behind_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_module, "PATIENCE_S", 0.1)
    async with swarm(**ALL) as made:
        made.join("a", hangs())
        async with asyncio.timeout(60):
            result = await made.coordinator.generate(request())
        assert result.outcome.finished == 3
        assert [x.reason for x in result.outcome.lost] == ["did not finish in time"]


@pytest.mark.parametrize("peers", [0, 1])
async def test_at_the_deadline_the_best_of_what_was_cut_off_is_better_than_nothing(peers: int) -> None:
    async with swarm(ENDLESS) as made:
        for i in range(peers):
            made.join(f"p{i}", hangs())
        asked = request(candidates=4, params={"max_tokens": 100_000})
        result = await made.coordinator.generate(asked, time.monotonic() + 1.0)
        assert result.finish_reason is FinishReason.DEADLINE
        assert result.text.startswith("w w")
        assert (result.outcome.planned, result.outcome.finished, result.outcome.quorum) == (4, 0, False)
        assert "the deadline cut all candidates off" in result.outcome.warnings
        assert {x.node for x in result.outcome.lost} == {"me", "p0"} if peers else {"me"}


async def test_a_deadline_that_nothing_meets() -> None:
    """The prompt is being read until it is over, however late that is noticed."""
    is_over = threading.Event()
    async with swarm(FakeSpec(prefill_per_s=20)) as made:
        made.backend._sleep = lambda _: is_over.wait(60)
        try:
            with pytest.raises(DeadlineExceeded, match="allow more time"):
                await made.coordinator.generate(request("one two three four five six"), time.monotonic() + 0.3)
        finally:
            is_over.set()


async def test_a_strict_quorum() -> None:
    async with swarm(strict_quorum=True, **ALL) as made:
        made.join("a", dies(0))
        made.join("b", says("42"))
        result = await made.coordinator.generate(request())
        assert result.outcome.finished == 4
        made.alive[1].script = dies(0)
        with pytest.raises(NoQuorum, match=r"of 6 candidates finished, too few \(a: .*b: "):
            await made.coordinator.generate(request())


async def test_a_strict_quorum_takes_nothing_that_was_cut_off() -> None:
    async with swarm(ENDLESS, strict_quorum=True) as made:
        with pytest.raises(NoQuorum, match="0 of 2"):
            await made.coordinator.generate(
                request(candidates=2, params={"max_tokens": 100_000}), time.monotonic() + 0.4
            )


# ---- strategies -----------------------------------------------------------------------------------------------------


async def test_similarity_groups_the_ballots_of_all_nodes() -> None:
    async with swarm(FakeSpec(answers=("the sky is blue",)), **ALL) as made:
        made.join("a", says("The sky is blue!", "grass grows green here always", "blue is the sky"))
        result = await made.coordinator.generate(request("Tell me.", strategy=Strategy.SIMILARITY))
        assert sorted(c.count for c in result.outcome.clusters) == [1, 5]
        assert "sky" in result.text
        assert result.outcome.dissent == (5,)
        assert result.outcome.warnings == ()


async def test_similarity_without_embeddings_goes_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarm(FakeSpec(answers=("the sky is blue",)), **ALL) as made:
        made.join("a", says("grass is green"))

        def fail(texts: object) -> None:
            raise BackendError("no memory")

        monkeypatch.setattr(made.backend, "embed", fail)
        asked = request("Tell me.", strategy=Strategy.SIMILARITY)
        result = await made.coordinator.generate(asked)
        assert len(result.outcome.clusters) == 2
        assert any("no embeddings" in w for w in result.outcome.warnings)
        never = asyncio.Event()

        async def wait(texts: object) -> None:
            await never.wait()

        monkeypatch.setattr(made.engine, "embed", wait)
        result = await made.coordinator.generate(asked, time.monotonic() + 1.5)
        assert any("no embeddings" in w for w in result.outcome.warnings)


async def test_tools_are_voted_on_by_the_canonical_call() -> None:
    def call(arguments: str) -> str:
        return f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>'

    tools = (Tool("add", "Adds."),)
    async with swarm(FakeSpec(answers=(call('{"a": 1, "b": 2.0}'),)), **ALL) as made:
        # A peer reads the calls out of the text before it sends them; one that does not means the same.
        read = {
            "tool_calls": [types_pb2.ToolCall(name="add", arguments='{"b":2,"a":1}')],
            "finish_reason": "tool_calls",
        }
        made.join("a", says("", **read))
        made.join("b", says(call('{"b": 2, "a": 1}'), "I would say 3"))
        result = await made.coordinator.generate(request("Add 1 and 2", tools=tools))
        assert [c.count for c in result.outcome.clusters] == [5, 1]
        assert result.finish_reason is FinishReason.TOOL_CALLS
        assert [(c.name, c.arguments) for c in result.tool_calls] == [("add", '{"a": 1, "b": 2.0}')]
        assert result.text == ""
        assert result.outcome.dissent == (6,)


async def test_a_claim_of_calls_without_calls_is_no_call() -> None:
    async with swarm(**ALL) as made:
        made.join("a", says("41", finish_reason="tool_calls"))
        result = await made.coordinator.generate(request())
        assert {c.finish_reason for c in result.candidates} == {FinishReason.STOP}
