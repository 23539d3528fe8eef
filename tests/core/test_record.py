"""The record of models: what votes teach, what candidates weigh for it, and that weighed tallies merge as all do."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.answers import CONFIDENCE_TEMPERATURE
from node.core.answers import ballot as make_ballot
from node.core.consensus import Vote, VoteState, elect, merge, tally
from node.core.record import (
    LEAST,
    MOST_CANDIDATES,
    MOST_VOTES,
    Record,
    Standing,
    accuracy,
    learn,
    pooled,
    standings,
    weighed,
)
from node.types import Ballot, Candidate, FinishReason, Outcome, Strategy

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=60)
KEYED = (Strategy.MAJORITY, Strategy.CONFIDENCE, Strategy.QUALITY)

RECORDS = st.builds(
    lambda votes, share, candidates, logprob: Record(votes, votes * share, candidates, logprob),
    st.floats(0, MOST_VOTES),
    st.floats(0, 1),
    st.floats(0, MOST_CANDIDATES),
    st.floats(-20, 0),
)


def cast(id: int, key: str, logprob: float = -0.5, strategy: Strategy = Strategy.MAJORITY) -> Ballot:
    said = Candidate(id, "n", f"answer: {key}" if key else "", 1, logprob, FinishReason.STOP, 1.0)
    return make_ballot(said, strategy, question="How many?")


def decided(ballots: Sequence[Ballot], strategy: Strategy = Strategy.MAJORITY, planned: int = 0) -> Outcome:
    return elect(tally(ballots, strategy, planned or len(ballots)))


@REPEATABLE
@given(st.dictionaries(st.text(max_size=3), RECORDS, min_size=1, max_size=6))
def test_the_best_model_weighs_one_and_none_nothing(records: dict[str, Record]) -> None:
    made = standings(records)
    assert set(made) == set(records)
    assert max(s.weight for s in made.values()) == 1.0
    assert min(s.weight for s in made.values()) >= LEAST
    mean = pooled(records.values())
    for a, one in records.items():
        for b, other in records.items():
            if accuracy(one, mean) >= accuracy(other, mean):
                assert made[a].weight >= made[b].weight
    if len(records) == 1:
        assert set(made.values()) == {Standing()}, "a model alone votes as it always did"


def test_what_is_not_known_weighs_the_same() -> None:
    good = Record(100, 80)
    made = standings({"good": good, "new": Record()})
    assert made["good"].weight == pytest.approx(made["new"].weight, rel=0.1)
    assert {s.weight for s in standings({"a": Record(), "b": Record()}).values()} == {1.0}
    # Luck in two votes moves little, a hundred votes much.
    lucky = standings({"good": good, "unlucky": Record(2, 0)})["unlucky"].weight
    bad = standings({"good": good, "bad": Record(100, 40)})["bad"].weight
    assert 0.5 < lucky < 1
    assert bad < 0.6


def test_examples_of_weights() -> None:
    def weights(*shares: float) -> list[float]:
        made = standings({str(i): Record(400, 400 * p) for i, p in enumerate(shares)})
        return [round(made[str(i)].weight, 2) for i in range(len(shares))]

    assert weights(0.65, 0.4) == [1.0, 0.41]
    assert weights(0.9, 0.9, 0.3) == [1.0, 1.0, 0.09]
    assert weights(0.9, 0.1) == [1.0, 0.06], "worse than chance: all but silent"
    assert weights(0.1, 0.2) == [1.0, 1.0], "nobody is better than chance: the odds say nothing"


def test_the_weights_elect_as_the_odds_say() -> None:
    """Two models of known accuracy, many questions: weighing by record is right more often than not weighing."""
    rng = random.Random(1)
    chances = {"good": 0.6, "bad": 0.3}
    records: dict[str, Record] = {}
    models = {id: ("bad" if id <= 5 else "good") for id in range(1, 10)}
    right = {"equal": 0, "weighed": 0}
    for question in range(600):
        ballots = []
        for id, model in models.items():
            key = "42" if rng.random() < chances[model] else str(rng.randrange(8))
            ballots.append(cast(id, key))
        made = standings({m: records.get(m, Record()) for m in chances})
        heavy = [weighed(b, made[models[b.candidate.id]], Strategy.MAJORITY) for b in ballots]
        outcome = decided(heavy)
        records |= learn(records, heavy, outcome, models)
        if question >= 100:
            right["equal"] += decided(ballots).clusters[0].key == "42"
            right["weighed"] += outcome.clusters[0].key == "42"
    assert right["weighed"] > right["equal"] + 15
    mean = pooled(records.values())
    assert accuracy(records["good"], mean) > accuracy(records["bad"], mean) + 0.2


# ---- what a vote teaches --------------------------------------------------------------------------------------------


def test_a_vote_counts_once_for_each_model_with_the_share_that_agreed() -> None:
    ballots = [cast(1, "42", -0.1), cast(2, "42", -0.3), cast(3, "42"), cast(4, "42"), cast(5, "41"), cast(6, "7")]
    models = {1: "a", 2: "a", 3: "b", 4: "b", 5: "b", 6: "c"}
    made = learn({"a": Record(3, 1, 2, -1.0)}, ballots, decided(ballots), models)
    assert made["a"] == Record(4, 2, 4, pytest.approx(-0.6))
    assert (made["b"].votes, made["b"].agreed) == (1, pytest.approx(2 / 3))
    assert (made["c"].votes, made["c"].agreed) == (1, 0)


@pytest.mark.parametrize(
    ("keys", "models", "why"),
    [
        (["42"] * 4, "aaaa", "one model agrees with itself"),
        (["42", "42", "41", "40"], "aabb", "no more than half of the weight"),
        (["42"], "a", "one ballot"),
    ],
)
def test_what_teaches_nothing(keys: list[str], models: str, why: str) -> None:
    ballots = [cast(i, key) for i, key in enumerate(keys, 1)]
    assert learn({}, ballots, decided(ballots), dict(enumerate(models, 1))) == {}, why


def test_a_lone_answer_and_a_missing_quorum_teach_nothing() -> None:
    heavy, light = cast(1, "42"), replace(cast(2, "41"), standing=0.1)
    assert decided([heavy, light]).confidence > 0.9
    assert learn({}, [heavy, light], decided([heavy, light]), {1: "a", 2: "b"}) == {}
    few = [cast(1, "42"), cast(2, "42")]
    assert learn({}, few, decided(few, planned=9), {1: "a", 2: "b"}) == {}
    assert learn({}, few, decided(few), {1: "a", 2: "b"})
    for strategy in (Strategy.QUALITY, Strategy.FASTEST):
        assert learn({}, few, decided(few, strategy), {1: "a", 2: "b"}) == {}


def test_a_record_never_grows_past_its_bounds_and_fades() -> None:
    record = Record()
    for i in range(3000):
        ballots = [cast(1, "42", math.nan if i % 7 == 0 else -math.inf), cast(2, "42"), cast(3, "42")]
        record = learn({"a": record}, ballots, decided(ballots), {1: "a", 2: "b", 3: "b"})["a"]
    assert record.votes == pytest.approx(MOST_VOTES)
    assert record.agreed <= record.votes
    assert record.candidates <= MOST_CANDIDATES
    assert record.logprob == -20.0
    for _ in range(1200):  # it errs from here on, and what was is forgotten
        ballots = [cast(1, "41"), cast(2, "42"), cast(3, "42")]
        record = learn({"a": record}, ballots, decided(ballots), {1: "a", 2: "b", 3: "b"})["a"]
    assert accuracy(record) < 0.1


# ---- log probabilities ----------------------------------------------------------------------------------------------


def test_log_probabilities_count_from_what_is_usual_for_the_model() -> None:
    """A model whose tokens are all less probable loses nothing by it; a better answer than usual still weighs more."""
    records = {"a": Record(50, 40, 200, -0.1), "b": Record(50, 40, 200, -1.2)}
    made = standings(records)
    assert made["a"].weight == made["b"].weight == 1.0

    def weight(model: str, logprob: float) -> float:
        return weighed(cast(1, "42", logprob, Strategy.CONFIDENCE), made[model], Strategy.CONFIDENCE).weight

    assert weight("a", -0.1) == pytest.approx(weight("b", -1.2), rel=0.05)
    assert weight("a", -0.1) == pytest.approx(math.exp(-1), rel=0.05)
    assert weight("b", -0.9) > weight("b", -1.2) * 1.5
    assert weight("b", 0.0) == 1.0, "capped, and nobody weighs more than 1"
    assert weight("a", -0.6) == pytest.approx(weight("a", -0.1) * math.exp(-0.5 / CONFIDENCE_TEMPERATURE))
    # Ties between models fall by the same measure.
    a, b = (
        weighed(cast(i, key, logprob), made[model], Strategy.MAJORITY)
        for i, key, logprob, model in ((1, "42", -0.3, "a"), (2, "41", -1.0, "b"))
    )
    assert decided([a, b]).clusters[0].key == "41"
    # Alone, a model's ballots are as they always were.
    alone = cast(1, "42", -1.0, Strategy.CONFIDENCE)
    assert weighed(alone, Standing(), Strategy.CONFIDENCE) is alone


def test_a_model_that_claims_to_be_certain_gains_nothing_by_it() -> None:
    records: dict[str, Record] = {}
    models = {1: "honest", 2: "honest", 3: "certain", 4: "certain"}
    for _ in range(20):
        made = standings({m: records.get(m, Record()) for m in ("honest", "certain")})
        ballots = [
            weighed(cast(i, "42", -0.8 if m == "honest" else 0.0, Strategy.CONFIDENCE), made[m], Strategy.CONFIDENCE)
            for i, m in models.items()
        ]
        records |= learn(records, ballots, decided(ballots, Strategy.CONFIDENCE), models)
    assert ballots[0].weight == pytest.approx(ballots[2].weight, rel=0.15)


# ---- votes and tallies ----------------------------------------------------------------------------------------------


@st.composite
def polls(draw: st.DrawFn) -> list[tuple[str, Ballot]]:
    """Ballots of nodes with models of different standing: (node, ballot)."""
    stand = [
        Standing(draw(st.sampled_from([1.0, 0.4, 1 / 3, LEAST])), draw(st.sampled_from([0.0, -0.2]))) for _ in range(3)
    ]
    ids = draw(st.lists(st.integers(1, 60), unique=True, min_size=1, max_size=12))
    strategy = draw(st.sampled_from(KEYED))
    out = []
    for id in ids:
        model = draw(st.integers(0, 2))
        logprob = draw(st.sampled_from([-0.1, -0.5, -2.0, math.nan]))
        ballot = weighed(
            cast(id, draw(st.sampled_from(["", "1", "2", "3"])), logprob, strategy), stand[model], strategy
        )
        out.append((f"{model}{draw(st.integers(0, 1))}", ballot))
    return out


@REPEATABLE
@given(polls(), st.sampled_from(KEYED), st.randoms(use_true_random=False))
def test_tallies_with_record_weights_merge_to_the_pooled_vote(
    cast_: list[tuple[str, Ballot]], strategy: Strategy, rng: random.Random
) -> None:
    """By node, in any order and any bracketing: what is elected is what all ballots in one pool elect."""
    by_node: dict[str, list[Ballot]] = {}
    for node, ballot in cast_:
        by_node.setdefault(node, []).append(ballot)
    parts = [tally(part, strategy, len(part)) for part in by_node.values()]
    pooled_ = tally([b for _, b in cast_], strategy, len(cast_))
    rng.shuffle(parts)
    assert reduce(merge, parts) == pooled_
    while len(parts) > 1:  # any tree of merges
        a, b = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        assert merge(a, b) == merge(b, a)
        parts.append(merge(a, b))
    assert parts == [pooled_]
    assert elect(parts[0]) == elect(pooled_)


@REPEATABLE
@given(polls(), st.sampled_from([Strategy.MAJORITY, Strategy.CONFIDENCE]), st.integers(0, 6))
def test_exact_stopping_never_stops_what_could_still_change(
    cast_: list[tuple[str, Ballot]], strategy: Strategy, more: int
) -> None:
    """A vote that stops early with weights has the winner that it has after any completion by its heaviest votes."""
    stand = {b.candidate.id: Standing(b.standing, b.par) for _, b in cast_}
    later = {100 + i: Standing((1.0, LEAST, 0.4)[i % 3]) for i in range(more)}
    vote = Vote(strategy, [*stand, *later], adaptive=False, standings=stand | later)
    for _, ballot in cast_:
        vote.add(ballot)
        if vote.state() is VoteState.WON:
            break
    if not vote.outstanding or vote.state() is not VoteState.WON:
        return
    leader = vote.tally().clusters[0].key
    for key in {c.key for c in vote.tally().clusters if c.key} | {"new"}:
        rest = [weighed(cast(id, key, 0.0, strategy), (stand | later)[id], strategy) for id in vote.outstanding]
        assert tally([*vote.ballots, *rest], strategy, 1).clusters[0].key == leader


def test_a_light_model_neither_decides_early_nor_holds_up() -> None:
    light, heavy = Standing(0.25), Standing(1.0)
    ids = range(1, 7)
    vote = Vote(Strategy.MAJORITY, ids, adaptive=False, standings={i: light if i <= 3 else heavy for i in ids})
    for i in (1, 2, 3):
        vote.add(cast(i, "41"))
    assert vote.state() is VoteState.PENDING, "three of six agree and weigh less than the first of the others"
    vote.add(cast(4, "42"))
    assert vote.state() is VoteState.PENDING
    vote.add(cast(5, "42"))
    assert vote.state() is VoteState.WON, "ahead by 1.25 with 1 to come"
    assert vote.outcome().confidence == pytest.approx(2 / 2.75)
    other = Vote(Strategy.MAJORITY, ids, adaptive=False, standings={i: light if i > 3 else heavy for i in ids})
    other.add(cast(1, "42"))
    assert other.state() is VoteState.PENDING
    other.add(cast(2, "42"))
    assert other.state() is VoteState.WON, "ahead by 2 with 1.75 to come"
    assert other.outstanding == (3, 4, 5, 6)


def test_a_quick_model_does_not_decide_before_the_others_have_spoken() -> None:
    """Adaptively; what is settled whatever they say is decided at once."""
    ids = range(1, 9)
    stand = {i: Standing(1.0, model="quick" if i <= 4 else "slow") for i in ids}
    vote = Vote(Strategy.MAJORITY, ids, standings=stand)
    for i in (1, 2, 3, 4):
        vote.add(cast(i, "41"))
    assert vote.state() is VoteState.PENDING
    vote.add(cast(5, "41"))
    assert vote.state() is VoteState.WON, "now the slow model is known to agree"
    alone = Vote(Strategy.MAJORITY, ids)
    for i in (1, 2, 3, 4):
        alone.add(cast(i, "41"))
    assert alone.state() is VoteState.WON, "of one model four of eight were enough"
    light = {i: Standing(1.0, model="quick") if i <= 4 else Standing(LEAST, model="slow") for i in ids}
    vote = Vote(Strategy.MAJORITY, ids, standings=light)
    vote.add(cast(1, "41"))
    vote.add(cast(2, "41"))
    vote.add(cast(3, "41"))
    assert vote.state() is VoteState.WON, "nobody waits for one that weighs next to nothing"


def test_what_a_ballot_says_of_its_own_standing_is_not_believed() -> None:
    vote = Vote(Strategy.MAJORITY, (1, 2, 3), early=False, standings={1: Standing(0.5, -0.3)})
    vote.add(replace(cast(1, "42"), standing=1e9, par=-5.0))
    vote.add(replace(cast(2, "42"), standing=math.nan))
    vote.add(cast(3, "41"))
    assert [(b.standing, b.par) for b in vote.ballots] == [(0.5, -0.3), (1.0, 0.0), (1.0, 0.0)]
    assert vote.tally().clusters[0].weight == 1.5
