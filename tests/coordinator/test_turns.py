"""Requests side by side: the same id once, a topic one turn at a time, and whoever leaves leaves nothing behind."""

import asyncio
import contextlib
import gc
import pickle
import random
from dataclasses import replace

import pytest
from scripted import ENDLESS, dies, events, hangs, request, says, swarm

from node import wire
from node.coordinator import Planned, Wrote, answered, late
from node.coordinator import coordinator as coordinator_module
from node.coordinator.account import Account
from node.coordinator.parts import Parts
from node.coordinator.turn import Turn
from node.core.log import Entry, Reply
from node.engine import scheduler
from node.engine.fake import FakeSpec
from node.errors import BackendError, InvalidRequest, NotFound, NotReady, Overloaded
from node.types import EarlyStop, GenerateRequest, GenerateResult, Message, Strategy, Version

SLOW = FakeSpec(answers=("one two three four",), tokens_per_s=100)


def said(text: str, **fields: object) -> GenerateRequest:
    return request(text, candidates=2, strategy=Strategy.SIMILARITY, **fields)


# ---- topics --------------------------------------------------------------------------------------------------------


async def test_a_topic_goes_on_where_it_was() -> None:
    async with swarm(FakeSpec()) as made:
        first = await made.coordinator.generate(said("red", topic="t"))
        assert (first.text, first.version) == ("echo: red", Version(0, 1, "me"))
        second = await made.coordinator.generate(said("blue", topic="t", append=True))
        assert second.version == Version(0, 2, "me")
        held = made.store.get("t")
        assert [(m.role, m.content) for m in held.messages] == [
            ("user", "red"),
            ("assistant", "echo: red"),
            ("user", "blue"),
            ("assistant", "echo: blue"),
        ]
        assert held.tokens == second.usage.prompt + second.usage.completion
        assert second.usage.prompt > first.usage.prompt
        anew = await made.coordinator.generate(said("green", topic="t"))
        assert anew.version == Version(0, 3, "me")
        assert len(made.store.get("t").messages) == 2
        assert (await made.coordinator.generate(said("x"))).version == Version()
        assert [t.topic for t in made.store.list()] == ["t"]


async def test_who_took_part_is_told_the_outcome() -> None:
    async with swarm(FakeSpec()) as made:
        takes, lost = made.join("a", says("echo: red")), made.join("c", dies(0))
        result = await made.coordinator.generate(request("red", topic="t"))
        assert made.store.get("t").replicas == ("me",)
        await made.coordinator.stop()
        assert len(lost.decided) == 1
        news = takes.decided[0]
        assert (news.topic, news.version.turn, news.version.node_id) == ("t", 1, "me")
        assert news.winner == result.outcome.winner > 0
        assert not news.messages, "the turn itself comes by KVSync.Append"
        await made.coordinator.generate(request("red"))
        await made.coordinator.stop()
        assert len(takes.decided) == 1, "without a topic there is nothing to hold"


@pytest.mark.parametrize("append", [True, False])
async def test_a_turn_that_came_in_meanwhile_becomes_a_branch(*, append: bool) -> None:
    """Two nodes went on at the same time, and neither waited for the other: nothing that was said is lost."""
    async with swarm(FakeSpec()) as made:
        await made.coordinator.generate(said("red", topic="t"))
        other = Entry(
            Version(0, 2, "zz"),
            Version(0, 1, "me"),
            (Message("user", "green"), Message("assistant", "echo: green")),
        )
        last = None
        async for event in made.coordinator.stream(said("blue", topic="t", append=append)):
            if isinstance(event, Planned):
                await made.store.add("t", other)
            last = event
        assert isinstance(last, GenerateResult)
        assert last.version == Version(0, 3, "me")
        log = made.store.log("t")
        before = ["red", "echo: red"] if append else []
        assert [m.content for m in log.conversation()] == [*before, "blue", "echo: blue"]
        assert log.branches() == [other.version]
        assert [m.content for m in log.conversation(other.version)] == ["red", "echo: red", "green", "echo: green"]


async def test_turns_of_other_nodes_are_continued() -> None:
    async with swarm(FakeSpec()) as made:
        conversation = (Message("user", "red"), Message("assistant", "noted"))
        await made.store.add("t", Entry(Version(0, 5, "b"), messages=conversation))
        assert made.coordinator.decide("t", Version(0, 5, "b")) == (True, Version(0, 5, "b"))
        assert made.coordinator.decide("t", Version(0, 6, "c")) == (False, Version(0, 5, "b"))
        result = await made.coordinator.generate(said("blue", topic="t", append=True))
        assert result.version == Version(0, 6, "me")
        assert [m.content for m in made.store.get("t").messages] == ["red", "noted", "blue", "echo: blue"]


async def test_a_turn_adds_what_is_new_and_no_more() -> None:
    """A client that sends the whole conversation each time does not fill the log with it."""
    async with swarm(FakeSpec()) as made:
        await made.coordinator.generate(said("red", topic="t"))
        whole = (*made.store.get("t").messages, Message("user", "blue"))
        asked = replace(said("blue", topic="t"), messages=whole)
        await made.coordinator.generate(asked)
        first, second = made.store.log("t").entries
        assert [m.content for m in second.messages] == ["blue", "echo: blue"]
        assert (second.parent, second.anew) == (first.version, False)
        await made.coordinator.generate(said("green", topic="t"))
        third = made.store.log("t").entries[-1]
        assert third.anew
        assert [m.content for m in made.store.get("t").messages] == ["green", "echo: green"]
        assert made.store.log("t").branches() == []


async def test_a_request_that_was_answered_elsewhere_gets_that_answer() -> None:
    """A client whose node died asks another one with the same id; the turn is in its log already."""
    async with swarm(FakeSpec()) as made:
        entry = Entry(
            Version(0, 1, "b"),
            messages=(Message("user", "red"), Message("assistant", "noted")),
            request_id="r1",
            reply=Reply("length", "majority", 3, 0.75, 0.5, 8, 8, 10, 2),
        )
        await made.store.add("t", entry)
        result = await made.coordinator.generate(said("red", topic="t", request_id="r1"))
        assert (result.text, result.finish_reason, result.version) == ("noted", "length", Version(0, 1, "b"))
        assert (result.outcome.confidence, result.outcome.winner, result.usage.completion) == (0.75, 3, 2)
        assert made.backend._decodes < 20, "only the speed was measured"
        assert len(made.store.log("t")) == 1
        with pytest.raises(InvalidRequest, match="another request"):
            await made.coordinator.generate(said("blue", topic="t", request_id="r1"))
        again = await made.coordinator.generate(said("blue", topic="t", append=True, request_id="r2"))
        assert (again.text, again.version.turn) == ("echo: blue", 2)


async def test_turns_of_a_topic_do_not_overlap() -> None:
    async with swarm(FakeSpec(tokens_per_s=500)) as made:
        await made.coordinator.generate(said("0", topic="t"))
        await asyncio.gather(
            *(made.coordinator.generate(said(str(i), topic="t", append=True)) for i in range(1, 6)),
            *(made.coordinator.generate(said(str(i), topic=f"t{i}")) for i in range(5)),
        )
        messages = made.store.get("t").messages
        assert [m.content for m in messages[1::2]] == [f"echo: {m.content}" for m in messages[::2]]
        assert sorted(m.content for m in messages[::2]) == [str(i) for i in range(6)]
        assert made.store.version("t").turn == 6
        assert not made.coordinator._topics


async def test_of_several_that_begin_a_topic_one_does_and_the_others_go_on() -> None:
    """Each begins it if nobody has: none writes over another's turn, and what is said to the model counts once."""
    async with swarm(FakeSpec(tokens_per_s=500)) as made:

        def begins(text: str) -> GenerateRequest:
            asked = said(text, topic="t", append=True, begin=True, request_id=f"r{text}")
            return replace(asked, messages=(Message("system", f"you are {text}"), *asked.messages))

        await asyncio.gather(*(made.coordinator.generate(begins(str(i))) for i in range(5)))
        system, *messages = made.store.get("t").messages
        assert (system.role, system.content) == ("system", f"you are {messages[0].content}")
        assert [m.content for m in messages[1::2]] == [f"echo: {m.content}" for m in messages[::2]]
        assert sorted(m.content for m in messages[::2]) == [str(i) for i in range(5)]
        assert made.store.log("t").branches() == []
        made.coordinator._remembered = answered.Answered()  # as on a node that was not asked
        for i in range(5):
            again = await made.coordinator.generate(begins(str(i)))
            assert again.text == f"echo: {i}"
        assert made.store.version("t").turn == 5
        with pytest.raises(NotFound, match="not to turn 9"):
            await made.coordinator.generate(replace(begins("x"), parent=Version(0, 9, "b")))
        with pytest.raises(NotFound):
            await made.coordinator.generate(replace(begins("y"), topic="gone", parent=Version(0, 9, "b")))
        with pytest.raises(NotFound):
            await made.coordinator.generate(said("z", topic="other", append=True))


async def test_turns_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "MAX_WAITING_TURNS", 2)
    async with swarm(ENDLESS) as made:
        asked = [said(str(i), topic="t", params={"max_tokens": 100_000}) for i in range(3)]
        running = [asyncio.create_task(made.coordinator.generate(a)) for a in asked]
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match="2 turns of topic 't' are waiting"):
            await made.coordinator.generate(said("x", topic="t"))
        for task in reversed(running):  # the waiting ones first: the lock is handed over to nobody who left
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_the_next_turn_begins_when_one_is_left_or_fails() -> None:
    async with swarm(ENDLESS) as made:
        first = asyncio.create_task(made.coordinator.generate(said("a", topic="t", params={"max_tokens": 100_000})))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(made.coordinator.generate(said("b", topic="t", params={"max_tokens": 2})))
        failing = asyncio.create_task(made.coordinator.generate(said("word " * 5000, topic="t")))
        third = asyncio.create_task(made.coordinator.generate(said("c", topic="t", params={"max_tokens": 2})))
        await asyncio.sleep(0.02)
        first.cancel()
        async with asyncio.timeout(60):
            assert (await second).version.turn == 1
            with pytest.raises(InvalidRequest):
                await failing
            assert (await third).version.turn == 2


# ---- the same request again ------------------------------------------------------------------------------------------


async def test_the_same_id_again_is_the_same_answer() -> None:
    async with swarm(SLOW) as made:
        peer = made.join("a", says("one two three four"))
        asked = said("x", topic="t", request_id="r1")
        first = await made.coordinator.generate(asked)
        assert await made.coordinator.generate(asked) == first
        assert await events(made, asked) == [first]
        assert len(peer.wishes) == 1
        assert made.store.version("t").turn == 1
        with pytest.raises(InvalidRequest, match="request_id 'r1' was used for another request"):
            await made.coordinator.generate(said("y", topic="t", request_id="r1"))
        assert made.store.version("t").turn == 1


async def test_the_same_id_at_once_is_one_turn() -> None:
    async with swarm(SLOW) as made:
        peer = made.join("a", says("one two three four", delay_s=0.02))
        asked = said("x", topic="t", request_id="r1")
        results = [asyncio.create_task(made.coordinator.generate(asked)) for _ in range(5)]
        await asyncio.sleep(0.005)
        with pytest.raises(InvalidRequest, match="used for another"):
            await made.coordinator.generate(said("y", request_id="r1"))
        found = await asyncio.gather(*results)
        assert all(r is found[0] for r in found)
        assert len(peer.wishes) == 1
        assert made.store.version("t").turn == 1


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_when_one_of_those_that_ask_the_same_leaves(left: int) -> None:
    """Whoever waits takes over from a first call that is left; one that waits leaves without harm."""
    async with swarm(FakeSpec(answers=("one two three four",), tokens_per_s=10)) as made:
        asked = said("x", topic="t", request_id="r1")
        calls = [asyncio.create_task(made.coordinator.generate(asked)) for _ in range(3)]
        await asyncio.sleep(0.02)
        calls[left].cancel()
        async with asyncio.timeout(60):
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[left], asyncio.CancelledError)
        others = [f for i, f in enumerate(found) if i != left]
        assert isinstance(others[0], GenerateResult)
        assert others[0] is others[1]
        assert others[0].outcome.finished == 2
        assert made.store.version("t").turn == 1


async def test_a_call_that_is_left_and_asked_again_at_once_is_answered_in_full() -> None:
    """What the first attempt leaves in the engine must not end the second."""
    async with swarm(SLOW) as made:
        asked = said("x", request_id="r1")
        for _ in range(20):
            async with contextlib.aclosing(made.coordinator.stream(asked)) as stream:
                async for event in stream:
                    if isinstance(event, Wrote):
                        break
        result = await made.coordinator.generate(asked)
        assert result.text == "one two three four"
        assert result.outcome.finished == 2


async def test_a_failure_is_not_remembered() -> None:
    async with swarm(FakeSpec(answers=("42",), fail_after=16)) as made:
        asked = request(request_id="r1")
        with pytest.raises(BackendError):
            await made.coordinator.generate(asked)
        made.join("a", says("42"))
        assert (await made.coordinator.generate(asked)).text == "42"


async def test_a_request_before_there_is_a_model_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarm() as made:
        backend = made.engine._backend
        monkeypatch.setattr(made.engine, "_backend", None)
        for _ in range(2):  # the second would wait for the first for ever
            with pytest.raises(NotReady):
                await made.coordinator.generate(request(request_id="r1"))
        monkeypatch.setattr(made.engine, "_backend", backend)
        assert (await made.coordinator.generate(request(request_id="r1"))).text == "42"


async def test_results_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "MOST", 3)
    async with swarm(FakeSpec()) as made:
        results = [await made.coordinator.generate(said(str(i), request_id=str(i))) for i in range(5)]
        assert await made.coordinator.generate(said("4", request_id="4")) == results[4]
        again = await made.coordinator.generate(said("0", request_id="0"))
        assert again != results[0]  # it took another time


async def test_large_results_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarm(FakeSpec(answers=("a b",)), early_stop=EarlyStop.OFF) as made:

        def asked(i: int) -> GenerateRequest:
            return request(str(i), request_id=str(i), params={"logprobs": True, "top_logprobs": 2})

        first = await made.coordinator.generate(asked(0))
        assert first.candidates[0].logprobs
        monkeypatch.setattr(answered, "MOST_BYTES", int(2.5 * len(pickle.dumps(first))))
        results = [await made.coordinator.generate(asked(i)) for i in range(4)]
        assert results[0] == first
        for i in (3, 2):
            assert await made.coordinator.generate(asked(i)) == results[i]
        assert await made.coordinator.generate(asked(1)) != results[1]


# ---- leaving ---------------------------------------------------------------------------------------------------------


async def test_who_leaves_leaves_no_work_for_the_garbage_collector() -> None:
    """A turn that holds itself stays until a full collection, which is seldom: thousands of them are megabytes."""
    async with swarm(SLOW) as made:
        gc.collect()
        gc.disable()
        try:
            for i in range(3):
                async with contextlib.aclosing(made.coordinator.stream(said(str(i)))) as stream:
                    async for event in stream:
                        if isinstance(event, Wrote):
                            break
            await made.coordinator.generate(said("x"))
            await asyncio.sleep(0)
            left = sum(isinstance(each, Turn | Parts) for each in gc.get_objects())
            assert left == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("seed", range(12))
async def test_leaving_at_any_moment_leaks_nothing(seed: int) -> None:
    """Clients that are cancelled after a random time, over peers that do all sorts of things; `swarm` checks."""
    chance = random.Random(seed)
    scripts = [says("one two three four", "five", delay_s=0.005), dies(1), hangs(1), says("six")]
    async with swarm(SLOW, sequences=8) as made:
        for i, script in enumerate(chance.sample(scripts, 2)):
            made.join(f"p{i}", script)
        tasks = []
        for i in range(12):
            topic = chance.choice(["", "", "t"])
            asked = request(f"q{i % 3}", candidates=chance.randint(1, 6), topic=topic, request_id=f"r{i}")
            tasks.append(asyncio.create_task(made.coordinator.generate(asked)))
            await asyncio.sleep(chance.random() * 0.01)
        for task in chance.sample(tasks, len(tasks)):
            task.cancel()
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(f, GenerateResult | asyncio.CancelledError) for f in found), found


@pytest.mark.parametrize("after", range(8))
async def test_leaving_a_stream_after_any_event_leaks_nothing(after: int) -> None:
    async with swarm(SLOW, early_stop=EarlyStop.OFF) as made:
        peer = made.join("a", says("one", delay_s=0.005))
        seen = 0
        async with contextlib.aclosing(made.coordinator.stream(request())) as stream:
            async for _ in stream:
                seen += 1
                if seen > after:
                    break
        assert seen == after + 1
        assert not peer.open, "the peer's part ends with the stream, not some time later"


async def test_the_local_phase_for_another_node() -> None:
    async with swarm(FakeSpec(answers=("42",))) as made:
        asked = request()
        [got] = [e async for e in made.coordinator.poll(asked, [7, 3], "b")]
        assert sorted(b.candidate.id for b in got.ballots) == [3, 7]
        assert got.tally is not None
        assert (got.tally.planned, got.tally.finished, got.tally.clusters[0].members) == (2, 2, (3, 7))
        assert len(wire.ballots_pb(got.ballots, got.tally).ballots) == 2
        [again] = [e async for e in made.coordinator.poll(asked, [7, 3], "b")]
        assert len(again.ballots) == 2, "the same wish again is a new one"


async def test_ballots_go_when_their_candidates_end_and_together_if_they_end_together() -> None:
    async with swarm(FakeSpec(answers=("42", "42 42 42 42"))) as made:
        asked = request(params={"seed": 1})
        got = [e async for e in made.coordinator.poll(asked, range(1, 9), "b")]
        assert len(got) == 2, "the short ones together, then the long ones with the tally"
        short, long = ({b.candidate.text for b in e.ballots} for e in got)
        assert (short, long) == ({"42"}, {"42 42 42 42"})
        assert [e.tally is None for e in got] == [True, False]
        assert sorted(b.candidate.id for e in got for b in e.ballots) == list(range(1, 9))


async def test_a_poll_that_is_left_frees_its_sequences() -> None:
    async with swarm(ENDLESS) as made:
        asked = request(params={"max_tokens": 100_000})
        polls = [asyncio.create_task(anext(made.coordinator.poll(asked, [1, 2], "b"))) for _ in range(3)]
        async with asyncio.timeout(60):
            while made.engine.free_sequences > 10:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


def test_all_pieces_of_a_step_are_told() -> None:
    """A step that accepts several guessed tokens has several pieces of one candidate."""
    step = scheduler.Text("job", ((1, "a"), (2, "x"), (1, "b")))
    assert Account(lambda: 1.0, started=0.0).see(step) == [Wrote(1, "ab"), Wrote(2, "x")]


async def test_the_kv_of_an_answer_of_a_peers_is_computed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "LATER_S", 0.01)
    async with swarm(FakeSpec(answers=("one", "two", "three"))) as made:
        made.join("b", says("nine and thirty"))
        # Ours all say the same for one seed in 27, which is a tie.
        result = await made.coordinator.generate(request(topic="t", candidates=8, params={"seed": 1}))
        assert result.text == "nine and thirty"
        whole = await made.engine.prompt(made.store.get("t").messages, (), is_raw=False)
        async with asyncio.timeout(60):
            while tuple((await made.engine.held("t"))[0]) != whole:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert made.backend.used_sequences == 1


async def test_what_is_computed_later_gives_way_to_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "LATER_S", 0.05)
    async with swarm(FakeSpec(answers=("one", "two", "three"))) as made:
        peer = made.join("b", says("nine and thirty"))
        first = await made.coordinator.generate(request(topic="t", candidates=8))
        made.alive.remove(peer)
        second = await made.coordinator.generate(request(topic="t", append=True, parent=first.version))
        await asyncio.sleep(0.2)
        held, _ = await made.engine.held("t")
        assert len(held) == second.usage.prompt + second.usage.completion - 1, "the turn's own KV is what is kept"


def test_the_first_token_of_an_answer_that_is_all_anothers() -> None:
    """No candidate is ours: a peer's first word, or where it sends none, its whole answer, is the first that came."""
    now = iter([0.5, 0.75])
    account = Account(lambda: next(now), started=0.25)
    account.see(Wrote(1, "so"))
    account.see(Wrote(1, "on"))
    assert account.first_token == 0.5
