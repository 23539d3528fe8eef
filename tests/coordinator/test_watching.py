"""What a stream tells only where it is asked for: the prompt's progress, who leads, what peers' candidates write."""

from __future__ import annotations

import pytest
from scripted import ballot, events, request, says, sends, swarm, writes

from node.coordinator import Leads, Progressed, Voted, Wishes, Wrote
from node.coordinator import remote as remote_module
from node.engine.fake import FakeSpec
from node.types import EarlyStop, GenerateResult

ALL = {"early_stop": EarlyStop.OFF}  # every candidate votes


async def test_nothing_of_it_comes_unasked() -> None:
    async with swarm(**ALL) as made:
        peer = made.join("a", sends(lambda w: writes(2, "unasked"), lambda w: ballot(2, "42")))
        seen = await events(made, request("word " * 2000, candidates=2))
        assert not [e for e in seen if isinstance(e, Progressed | Leads)]
        assert {e.candidate for e in seen if isinstance(e, Wrote)} == {1}
        assert not peer.wishes[0].texts


async def test_a_long_prompt_says_how_far_it_is() -> None:
    async with swarm(**ALL) as made:
        wishes = Wishes(progress=True)
        asked = request("word " * 2000, candidates=2, topic="t")
        seen = await events(made, asked, wishes=wishes)
        told = [e for e in seen if isinstance(e, Progressed)]
        assert len(told) >= 3, "a step computes 512 tokens"
        assert [e.computed for e in told] == sorted({e.computed for e in told})
        [total] = {e.prompt for e in told}
        assert total == seen[-1].usage.prompt > told[-1].computed  # type: ignore[union-attr]
        assert {e.cached for e in told} == {0}
        assert seen.index(told[-1]) < next(i for i, e in enumerate(seen) if isinstance(e, Wrote))
        seen = await events(made, request("more " * 1500, candidates=2, topic="t", append=True), wishes=wishes)
        told = [e for e in seen if isinstance(e, Progressed)]
        assert all(e.cached > 2000 and e.computed > e.cached for e in told)
        assert told
        assert not [e for e in await events(made, request("short"), wishes=wishes) if isinstance(e, Progressed)]


async def test_the_leader_after_each_ballot() -> None:
    async with swarm(**ALL) as made:
        made.join("a", says("7", "7", "7", delay_s=0.2))
        seen = await events(made, request(candidates=4), wishes=Wishes(leader=True))
        leads = [e for e in seen if isinstance(e, Leads)]
        assert [e.finished for e in leads] == [1, 2, 3, 4]
        assert [(e.ballot.key, e.share) for e in leads] == [
            ("42", 1.0),
            ("42", 1.0),
            ("42", pytest.approx(2 / 3)),
            ("42", 0.5),
        ]
        for i, event in enumerate(seen):
            if isinstance(event, Leads):
                assert isinstance(seen[i - 1], Voted), "it comes with the ballot that made it so"
        made.alive.clear()
        made.join("b", says("7", "7", "7", "7"))
        seen = await events(made, request(candidates=7, params={"seed": 3}), wishes=Wishes(leader=True))
        result = seen[-1]
        assert isinstance(result, GenerateResult)
        assert [e.ballot.key for e in seen if isinstance(e, Leads)][-1] == result.answers[result.outcome.winner] == "42"


async def test_what_peers_write_is_watched_and_of_no_weight() -> None:
    async with swarm(**ALL) as made:
        peer = made.join(
            "a",
            sends(
                lambda w: writes(2, "I think "),
                lambda w: writes(1, "of another node"),
                lambda w: writes(9, "of nobody"),
                lambda w: writes(2, "it is 7"),
                lambda w: ballot(2, "42"),
                lambda w: writes(2, "too late"),
            ),
        )
        seen = await events(made, request(candidates=2), wishes=Wishes(peers=True))
        assert peer.wishes[0].texts
        texts = [e.text for e in seen if isinstance(e, Wrote) and e.candidate == 2]
        assert texts == ["I think ", "it is 7"]
        assert "".join(e.text for e in seen if isinstance(e, Wrote) and e.candidate == 1) == "42"
        result = seen[-1]
        assert isinstance(result, GenerateResult)
        assert result.answers == {1: "42", 2: "42"}


async def test_a_peer_that_writes_without_end_is_not_shown_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "MAX_TEXT_BYTES", 1000)
    async with swarm(**ALL) as made:
        made.join("a", sends(*[lambda w: writes(2, "x" * 300)] * 10, lambda w: ballot(2, "42")))
        seen = await events(made, request(candidates=2), wishes=Wishes(peers=True))
        assert sum(len(e.text) for e in seen if isinstance(e, Wrote) and e.candidate == 2) == 900
        assert seen[-1].outcome.finished == 2  # type: ignore[union-attr]


async def test_the_local_phase_tells_texts_where_they_are_asked_for() -> None:
    async with swarm(FakeSpec(answers=("one two",))) as made:
        for texts in (False, True):
            seen = [e async for e in made.coordinator.poll(request(), [4, 5], "them", texts=texts)]
            wrote = [e for e in seen if isinstance(e, Wrote)]
            assert {e.candidate for e in wrote} == ({4, 5} if texts else set())
            assert "".join(e.text for e in wrote if e.candidate == 4) == ("one two" if texts else "")
