"""The vote against independent counts of the same: pooled ballots, every completion, an urn, plain integration."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.answers import ballot as make_ballot
from node.core.consensus import (
    ADAPTIVE_RISK,
    DISAGREEMENT,
    Vote,
    VoteState,
    adaptive_consistency,
    chance_of_change,
    check,
    elect,
    group,
    merge,
    needed,
    tally,
)
from node.core.similarity import negated
from node.core.tally import quantised
from node.errors import InvalidRequest, NoQuorum
from node.types import Ballot, Candidate, Cluster, FinishReason, Loss, Outcome, Strategy, Tally, ToolCall

# The same examples in every run, however busy the machine is.
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=60)

KEYED = (Strategy.MAJORITY, Strategy.CONFIDENCE, Strategy.QUALITY)


def cast(
    number: int,
    key: str,
    weight: float = 1.0,
    quality: float = 0.5,
    logprob: float = -0.5,
    latency_ms: float = 1.0,
    text: str | None = None,
    calls: tuple[ToolCall, ...] = (),
) -> Ballot:
    said = key if text is None else text
    candidate = Candidate(number, "a", said, 1, logprob, FinishReason.STOP, latency_ms, calls)
    return Ballot(candidate, key, weight, quality)


@st.composite
def polls(draw: st.DrawFn, most: int = 12) -> list[Ballot]:
    """Ballots with few keys and few feature values, so that ties of every kind are common."""
    ids = draw(st.lists(st.integers(1, 99), unique=True, min_size=1, max_size=most))
    return [
        cast(
            number,
            draw(st.sampled_from(["", "a", "b", "c"])),
            draw(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.0]) | st.floats(width=64)),
            draw(st.sampled_from([0.0, 0.5, 1.0, math.nan])),
            draw(st.sampled_from([-0.1, -0.5, -math.inf, math.nan])),
            draw(st.sampled_from([1.0, 2.0, math.inf])),
        )
        for number in ids
    ]


def split(ballots: Sequence[Ballot], nodes: Sequence[int]) -> list[list[Ballot]]:
    parts: dict[int, list[Ballot]] = {}
    for each, node in zip(ballots, itertools.cycle(nodes), strict=False):
        parts.setdefault(node, []).append(each)
    return list(parts.values())


# --- counting -------------------------------------------------------------------------------------------------------


def plain_winner(ballots: Sequence[Ballot], strategy: Strategy) -> str:
    """The winning key by another route: exact fractions, and every cluster compared with every other."""
    said = [each for each in ballots if each.key] or list(ballots)

    def weight(key: str) -> Fraction:
        mine = [each for each in said if each.key == key]
        weights = (Fraction(quantised(each.weight) if strategy is Strategy.CONFIDENCE else 1) for each in mine)
        return sum(weights, Fraction(0))

    def form(each: Ballot) -> float:
        return 0.0 if math.isnan(each.quality) else each.quality

    def logprob(each: Ballot) -> float:
        value = each.candidate.mean_logprob
        return -math.inf if math.isnan(value) else value

    def text(key: str) -> Ballot:
        mine = [each for each in said if each.key == key]
        best = [each for each in mine if form(each) == max(map(form, mine))]
        best = [each for each in best if logprob(each) == max(map(logprob, best))]
        return min(best, key=lambda each: each.candidate.id)

    def beats(left: str, right: str) -> bool:
        pairs: list[tuple[Fraction | float, Fraction | float]] = [
            (weight(left), weight(right)),
            (form(text(left)), form(text(right))),
        ]
        if strategy is Strategy.QUALITY:
            pairs.reverse()
        pairs.append((logprob(text(left)), logprob(text(right))))
        for mine, theirs in pairs:
            if mine != theirs:
                return mine > theirs
        return text(left).candidate.id < text(right).candidate.id

    keys = {each.key for each in said}
    (winner,) = [key for key in keys if all(beats(key, other) for other in keys - {key})]
    return winner


@REPEATABLE
@given(polls(), st.sampled_from(KEYED))
def test_winner_is_that_of_a_second_count(ballots: list[Ballot], strategy: Strategy) -> None:
    assert tally(ballots, strategy, len(ballots)).clusters[0].key == plain_winner(ballots, strategy)


@REPEATABLE
@given(polls(), st.lists(st.integers(0, 4), min_size=1, max_size=12), st.sampled_from([*KEYED, Strategy.FASTEST]))
def test_merged_tallies_elect_as_pooled_ballots(ballots: list[Ballot], nodes: list[int], strategy: Strategy) -> None:
    parts = split(ballots, nodes)
    pooled = tally(ballots, strategy, len(ballots))
    merged = reduce(merge, (tally(part, strategy, len(part)) for part in parts))
    assert merged == pooled
    assert elect(merged) == elect(pooled)


def partitions(items: list[Ballot]) -> list[list[list[Ballot]]]:
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found = []
    for smaller in partitions(rest):
        found.append([[first], *smaller])
        found += [[*smaller[:i], [first, *part], *smaller[i + 1 :]] for i, part in enumerate(smaller)]
    return found


@pytest.mark.parametrize("strategy", KEYED)
def test_every_partition_into_nodes_elects_the_same(strategy: Strategy) -> None:
    weights = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.7]
    ballots = [cast(i + 1, "abcabca"[i], weights[i], quality=i % 3 / 2, logprob=-(i % 2)) for i in range(7)]
    pooled = elect(tally(ballots, strategy, 7))
    ways = partitions(ballots)
    assert len(ways) == 877  # Bell number of 7
    for parts in ways:
        assert elect(reduce(merge, (tally(part, strategy, len(part)) for part in parts))) == pooled


@REPEATABLE
@given(polls(), st.permutations(range(3)), st.sampled_from(KEYED))
def test_merge_is_commutative_and_associative(ballots: list[Ballot], order: list[int], strategy: Strategy) -> None:
    parts = [tally(ballots[i::3], strategy, 4) for i in range(3)]
    a, b, c = (parts[i] for i in order)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == merge(merge(*parts[:2]), parts[2])


def test_merging_survives_weights_whose_float_sums_depend_on_order() -> None:
    # In plain floats (0.1 + 0.2) + 0.3 > 0.1 + (0.2 + 0.3), and that would elect by the order of arrival.
    left = [cast(1, "a", 0.1), cast(2, "a", 0.2), cast(3, "a", 0.3)]
    right = [cast(4, "b", 0.3), cast(5, "b", 0.2), cast(6, "b", 0.1)]
    assert sum(each.weight for each in left) != sum(each.weight for each in right)
    counted = tally(left + right, Strategy.CONFIDENCE, 6)
    assert counted.clusters[0].weight == counted.clusters[1].weight
    assert counted.clusters[0].key == "a"


@REPEATABLE
@given(polls(), st.randoms(use_true_random=False), st.sampled_from(list(Strategy)[1:]))
def test_the_order_of_ballots_does_not_matter(ballots: list[Ballot], rng: random.Random, strategy: Strategy) -> None:
    shuffled = rng.sample(ballots, len(ballots))
    assert tally(ballots, strategy, 12) == tally(shuffled, strategy, 12)


def test_winner_takes_all_would_invert_the_popular_vote() -> None:
    nodes = ["AAABB", "AAABB", "BBBBB"]
    numbers = itertools.count(1)
    tallies = [tally([cast(next(numbers), key) for key in node], Strategy.MAJORITY, 5) for node in nodes]
    electors = Counter(elect(each).clusters[0].key for each in tallies)
    assert electors.most_common(1)[0][0] == "A"
    assert elect(reduce(merge, tallies)).clusters[0].key == "B"


@REPEATABLE
@given(polls(), st.sampled_from(list(Strategy)[1:]))
def test_outcomes_are_within_bounds(ballots: list[Ballot], strategy: Strategy) -> None:
    outcome = elect(tally(ballots, strategy, len(ballots)))
    assert 0.0 <= outcome.margin <= outcome.confidence <= 1.0
    winners = set(outcome.clusters[0].members)
    assert outcome.winner in winners
    assert winners | set(outcome.dissent) == {each.candidate.id for each in ballots}
    assert not winners & set(outcome.dissent)
    if strategy is not Strategy.FASTEST:
        assert outcome.disagreement == (outcome.confidence <= DISAGREEMENT)
    if any(each.key for each in ballots):
        assert outcome.clusters[0].key


@pytest.mark.parametrize(
    ("weight", "is_"),
    [(math.nan, 2**-40), (-1.0, 2**-40), (0.0, 2**-40), (5e-324, 2**-40), (math.inf, 1.0), (7.0, 1.0), (0.5, 0.5)],
)
def test_weights_are_brought_within_bounds(weight: float, is_: float) -> None:
    assert quantised(weight) == is_
    assert tally([cast(1, "a", weight)], Strategy.CONFIDENCE, 1).clusters[0].weight == is_
    assert tally([cast(1, "a", weight)], Strategy.MAJORITY, 1).clusters[0].weight == 1.0


def test_8192_weights_add_up_exactly() -> None:
    weight = quantised(1 / 3)
    ballots = [cast(i, "a", 1 / 3) for i in range(1, 8193)]
    assert Fraction(tally(ballots, Strategy.CONFIDENCE, 8192).clusters[0].weight) == 8192 * Fraction(weight)


def test_a_tally_cannot_outweigh_its_members() -> None:
    honest = tally([cast(1, "a"), cast(2, "a")], Strategy.MAJORITY, 2)
    for weight in (1e9, math.inf, 3.0):
        loud = tally([cast(3, "b")], Strategy.MAJORITY, 1)
        loud = replace(loud, clusters=(replace(loud.clusters[0], weight=weight, count=99),))
        merged = merge(honest, loud)
        assert merged == merge(loud, honest)
        assert merged.clusters[0].key == "a"
    silent = replace(honest, clusters=(replace(honest.clusters[0], weight=math.nan),))
    assert elect(merge(silent, tally([cast(3, "b")], Strategy.MAJORITY, 1))).clusters[0].key == "b"


def test_weights_of_a_peer_that_lie_off_the_grid_merge_in_any_order() -> None:
    def off(number: int, weight: float) -> Tally:
        counted = tally([cast(number, "a")], Strategy.CONFIDENCE, 1)
        return replace(counted, clusters=(replace(counted.clusters[0], weight=weight),))

    a, b, c = off(1, 0.1), off(2, 0.2), off(3, 0.3)
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == merge(merge(c, b), a)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="votes twice"):
        tally([cast(1, "a"), cast(1, "b")], Strategy.MAJORITY, 2)
    one = tally([cast(1, "a")], Strategy.MAJORITY, 1)
    with pytest.raises(InvalidRequest, match="both tallies"):
        merge(one, one)
    with pytest.raises(InvalidRequest, match="do not merge"):
        merge(one, tally([cast(2, "a")], Strategy.QUALITY, 1))
    with pytest.raises(NoQuorum, match="none of 4"):
        elect(tally([], Strategy.MAJORITY, 4))


# --- a peer's tally ---------------------------------------------------------------------------------------------------


@REPEATABLE
@given(polls(), st.sampled_from(list(Strategy)[1:]))
def test_an_honest_tally_adds_up(ballots: list[Ballot], strategy: Strategy) -> None:
    assert check(tally(ballots, strategy, len(ballots) + 1), ballots) is None


def test_a_medoid_may_lose_over_the_wire_what_the_wire_does_not_carry() -> None:
    ballots = [cast(1, "a", 0.3), cast(2, "a", 0.4)]
    counted = tally(ballots, Strategy.CONFIDENCE, 2)
    cluster = counted.clusters[0]
    bare = replace(cluster.medoid.candidate, tokens=0, latency_ms=0.0, node="")
    medoid = replace(cluster.medoid, candidate=bare, weight=0.0)
    assert check(replace(counted, clusters=(replace(cluster, medoid=medoid),)), ballots) is None


BALLOTS = [cast(1, "a"), cast(2, "a"), cast(3, "b")]


def lie(**change: object) -> Tally:
    counted = tally(BALLOTS, Strategy.MAJORITY, 4)
    first = replace(counted.clusters[0], **change)  # type: ignore[arg-type]
    return replace(counted, clusters=(first, *counted.clusters[1:]))


@pytest.mark.parametrize(
    ("counted", "says"),
    [
        (replace(tally(BALLOTS, Strategy.MAJORITY, 4), finished=2), "counts 2 finished candidates, 3 ballots came"),
        (replace(tally(BALLOTS, Strategy.MAJORITY, 4), planned=2), "3 finished candidates of 2 planned"),
        (replace(tally(BALLOTS, Strategy.MAJORITY, 4), clusters=()), "candidate 1 sent a ballot and is in no cluster"),
        (tally(BALLOTS[:2], Strategy.MAJORITY, 4), "counts 2 finished"),
        (lie(count=3), "counts 3 and names 2 members"),
        (lie(members=(1, 2, 9), count=3, weight=3.0), "candidate 9 of cluster 'a' sent no ballot"),
        (lie(members=(1, 2, 3), count=3, weight=3.0), "candidate 3 of cluster 'a' voted for 'b'"),
        (lie(members=(), count=0, weight=0.0), "is empty"),
        (lie(members=(2, 1)), "counts 2"),
        (lie(weight=2.5), "weighs 2.5, its ballots 2.0"),
        (lie(weight=math.nan), "weighs nan"),
        (lie(medoid=BALLOTS[2]), "is not one of its members"),
        (lie(medoid=cast(1, "a", quality=0.9)), "differs from its ballot"),
        (lie(medoid=cast(1, "a", text="rm -rf")), "differs from its ballot"),
    ],
)
def test_a_tally_that_does_not_add_up_is_found_out(counted: Tally, says: str) -> None:
    assert says in (check(counted, BALLOTS) or "nothing")


def test_a_cluster_in_two_pieces_is_found_out() -> None:
    counted = tally(BALLOTS, Strategy.MAJORITY, 4)
    a, b = counted.clusters
    pieces = tuple(Cluster("a", 1, 1.0, BALLOTS[i], (i + 1,)) for i in range(2))
    assert check(replace(counted, clusters=(*pieces, b)), BALLOTS) == "cluster 'a' comes twice"
    again = replace(counted, strategy=Strategy.SIMILARITY, clusters=(a, a, b))
    assert check(again, BALLOTS) == "a candidate of cluster 'a' is counted twice"
    assert check(counted, [*BALLOTS, BALLOTS[0]]) == "two ballots have the same candidate id"


# --- stopping early ---------------------------------------------------------------------------------------------------


def completions(outstanding: Sequence[int], keys: Sequence[str]) -> list[list[Ballot]]:
    """All ways in which the outstanding candidates may still vote, with the best features a ballot can have."""
    choices = [[cast(number, key, 1.0, 1.0, 0.0) for key in keys] for number in outstanding]
    return [list(way) for way in itertools.product(*choices)]


def can_change(ballots: list[Ballot], outstanding: Sequence[int], strategy: Strategy) -> bool:
    leader = plain_winner(ballots, strategy)
    if not leader:
        return True
    keys = sorted({each.key for each in ballots if each.key} | {"new"})
    return any(plain_winner(ballots + way, strategy) != leader for way in completions(outstanding, keys))


@pytest.mark.parametrize("planned", [1, 2, 3, 4, 5])
def test_majority_stops_exactly_when_no_completion_changes_the_winner(planned: int) -> None:
    stopped = 0
    for finished in range(1, planned + 1):
        for keys in itertools.product(["a", "b", "c", ""], repeat=finished):
            # Ids fall, so that outstanding candidates also win the last tie-break.
            ballots = [cast(planned - i, key) for i, key in enumerate(keys)]
            vote = Vote(Strategy.MAJORITY, range(1, planned + 1), adaptive=False)
            outstanding = tuple(range(1, planned - finished + 1))
            for each in ballots:
                vote.add(each)
            if len(vote.ballots) < finished:
                continue  # decided by fewer ballots, which is a case of its own
            assert vote.outstanding == outstanding
            decided = vote.state() is VoteState.WON
            assert decided == (not outstanding or not can_change(ballots, outstanding, Strategy.MAJORITY)), keys
            stopped += decided and bool(outstanding)
    assert (stopped > 0) == (planned >= 3)


@REPEATABLE
@given(
    st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=7),
    st.integers(1, 6),
    st.sampled_from([Strategy.MAJORITY, Strategy.SIMILARITY]),
)
def test_what_a_vote_misses_is_what_decides_it(keys: list[str], more: int, strategy: Strategy) -> None:
    """As many more ballots for the leader as are missing decide it, and one fewer does not."""
    planned = len(keys) + more
    vote = Vote(strategy, range(1, planned + 1), adaptive=False)
    for number, key in enumerate(keys, 1):
        vote.add(cast(number, key))
    if vote.state() is VoteState.WON:
        return
    leader = next((cluster.key for cluster in vote.tally().clusters if cluster.key), "new")
    missing, left = vote.missing, vote.outstanding
    assert 1 <= missing <= len(left)
    for number in left[: missing - 1]:
        vote.add(cast(number, leader))
        assert vote.state() is VoteState.PENDING
    vote.add(cast(left[missing - 1], leader))
    assert vote.state() is VoteState.WON
    assert Vote(strategy, range(1, 6), early=False).missing == 5
    assert Vote(Strategy.QUALITY, range(1, 6)).missing == 5
    assert Vote(Strategy.FASTEST, range(1, 6)).missing == 1


@settings(REPEATABLE, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.25, 0.5, 0.75, 1.0])), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_confidence_stops_exactly_when_no_completion_changes_the_winner(
    votes: list[tuple[str, float]], more: int
) -> None:
    planned = len(votes) + more
    ballots = [cast(planned - i, key, weight) for i, (key, weight) in enumerate(votes)]
    vote = Vote(Strategy.CONFIDENCE, range(1, planned + 1), adaptive=False)
    for place, each in enumerate(ballots):
        assert vote.add(each) is None
        outstanding = tuple(range(1, planned - place))
        changes = can_change(ballots[: place + 1], outstanding, Strategy.CONFIDENCE)
        assert (vote.state() is VoteState.WON) == (not outstanding or not changes)
        if vote.state() is VoteState.WON:
            break


@pytest.mark.parametrize("strategy", [Strategy.QUALITY, Strategy.SIMILARITY])
def test_what_the_end_may_overturn_waits_for_it(strategy: Strategy) -> None:
    vote = Vote(strategy, range(1, 7))
    for number in (1, 2, 3):
        vote.add(cast(number, "a"))
        assert vote.state() is VoteState.PENDING
    # Four of six equal texts outweigh any group that the other two can be in; a better form may still come.
    vote.add(cast(4, "a"))
    assert (vote.state() is VoteState.WON) == (strategy is Strategy.SIMILARITY)


def test_similarity_reckons_with_all_others_meaning_the_same() -> None:
    vote = Vote(Strategy.SIMILARITY, range(1, 7))
    for number, key in enumerate("aaabc", 1):
        vote.add(cast(number, key))
    # Ahead of each by two with one to come, yet b, c and that one may be three ways to say one thing.
    assert vote.state() is VoteState.PENDING
    majority = Vote(Strategy.MAJORITY, range(1, 7), adaptive=False)
    for number, key in enumerate("aaabc", 1):
        majority.add(cast(number, key))
    assert majority.state() is VoteState.WON


def urn(leader: int, runner: int, outstanding: int) -> Fraction:
    """The same chance by Polya's urn, vote by vote: the next one falls to each with its count plus one."""
    if outstanding == 0:
        return Fraction(runner >= leader)
    of_runner = Fraction(runner + 1, leader + runner + 2)
    return of_runner * urn(leader, runner + 1, outstanding - 1) + (1 - of_runner) * urn(
        leader + 1, runner, outstanding - 1
    )


@pytest.mark.parametrize("outstanding", range(1, 8))
def test_chance_of_change_is_that_of_an_urn(outstanding: int) -> None:
    for leader in range(7):
        for runner in range(leader + 1):
            assert chance_of_change(leader, runner, outstanding) == pytest.approx(
                float(urn(leader, runner, outstanding)), abs=1e-15
            )


def test_chance_of_change_with_fractional_weights_is_that_of_the_integral() -> None:
    leader, runner, outstanding = 2.75, 1.5, 5
    steps = 20000
    least = math.ceil((leader - runner + outstanding) / 2)
    total = part = 0.0
    for i in range(steps):
        p = (i + 0.5) / steps  # the runner-up's share of votes to come
        density = p**runner * (1 - p) ** leader
        flips = sum(math.comb(outstanding, k) * p**k * (1 - p) ** (outstanding - k) for k in range(least, 6))
        total += density
        part += density * flips
    assert chance_of_change(leader, runner, outstanding) == pytest.approx(part / total, abs=1e-6)


def test_chance_of_change_tends_to_the_rule_it_comes_from() -> None:
    assert adaptive_consistency(0, 0) == 0.5
    assert adaptive_consistency(4, 0) == 1 - 2**-5
    for first, second in [(3, 0), (4, 1), (5, 2), (9, 9)]:
        assert chance_of_change(first, second, 1000) == pytest.approx(1 - adaptive_consistency(first, second), abs=4e-3)
    # With an end in sight fewer ballots are enough: three of nine instead of four of any number.
    assert 1 - adaptive_consistency(3, 0) > ADAPTIVE_RISK > chance_of_change(3, 0, 6)


def test_adaptive_consistency_is_the_integral_over_the_posterior() -> None:
    for first, second in [(1, 0), (3, 1), (7, 4)]:
        steps = 20000
        grid = [(i + 0.5) / steps for i in range(steps)]
        density = [p**first * (1 - p) ** second for p in grid]
        upper = sum(value for p, value in zip(grid, density, strict=True) if p > 0.5)
        assert adaptive_consistency(first, second) == pytest.approx(upper / sum(density), abs=1e-4)


@REPEATABLE
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30))
def test_chance_of_change_is_a_chance(a: int, b: int, outstanding: int) -> None:
    leader, runner = max(a, b), min(a, b)
    chance = chance_of_change(leader, runner, outstanding)
    assert 0.0 <= chance <= 1.0
    assert chance_of_change(leader + 1, runner, outstanding) <= chance
    assert (chance == 0.0) == (outstanding == 0 or leader - runner > outstanding)


def stopped_after(keys: Sequence[str], strategy: Strategy = Strategy.MAJORITY, weight: float = 1.0) -> int:
    vote = Vote(strategy, range(1, len(keys) + 1))
    for number, key in enumerate(keys, 1):
        vote.add(cast(number, key, weight))
        if vote.state() is VoteState.WON:
            return number
    raise AssertionError("never decided")


def test_adaptive_stops_no_sooner_than_its_risk_allows() -> None:
    for planned in range(2, 41):
        after = stopped_after("a" * planned)
        certain = planned // 2 + 1
        assert after <= certain
        before = chance_of_change(after - 1, 0, planned - after + 1)
        assert before >= ADAPTIVE_RISK, "it could have stopped one ballot sooner"
        if after < certain:
            assert chance_of_change(after, 0, planned - after) < ADAPTIVE_RISK
    assert [stopped_after("a" * planned) for planned in (3, 5, 9, 16, 64)] == [2, 3, 3, 4, 4]
    assert stopped_after("ab" * 8) == 16  # never on a tie


def test_a_common_factor_of_all_weights_changes_nothing() -> None:
    for weight in (1.0, 0.5, 2**-10):
        assert stopped_after("abaaaaaaa", Strategy.CONFIDENCE, weight) == stopped_after("abaaaaaaa")


def test_adaptive_changes_fewer_winners_than_its_risk() -> None:
    # Two answers whose share is drawn from the rule's own prior; then the frequency of changed winners over all votes
    # that stop must stay below the risk, and it must save ballots.
    rng = random.Random(7)
    changed = saved = 0
    rounds = 1500
    for _ in range(rounds):
        share = rng.random()
        keys = ["a" if rng.random() < share else "b" for _ in range(16)]
        after = stopped_after(keys)
        early = Counter(keys[:after]).most_common(1)[0][0]
        whole = Counter(keys)
        changed += whole[early] < 16 - whole[early]
        saved += 16 - after
    assert changed / rounds < ADAPTIVE_RISK
    assert saved / rounds > 16 * 0.5


# --- the course of a vote ---------------------------------------------------------------------------------------------


@REPEATABLE
@given(polls(10), st.randoms(use_true_random=False), st.sampled_from([*KEYED, Strategy.SIMILARITY]), st.booleans())
def test_a_vote_ends_once_and_accounts_for_every_candidate(
    ballots: list[Ballot], rng: random.Random, strategy: Strategy, adaptive: bool
) -> None:
    ids = [each.candidate.id for each in ballots]
    vote = Vote(strategy, ids, adaptive=adaptive)
    lost: set[int] = set()
    for each in ballots:
        before = vote.state()
        if rng.random() < 0.3:
            lost.update(vote.lose([each.candidate.id], "b", "died"))
        else:
            counted = vote.add(each) is None
            assert counted == (before is VoteState.PENDING)
        if before is not VoteState.PENDING:
            assert vote.state() is before
    assert vote.state() is not VoteState.PENDING
    finished = {each.candidate.id for each in vote.ballots}
    assert finished | lost | set(vote.outstanding) == set(ids)
    if vote.state() is VoteState.LOST:
        assert not finished
        return
    outcome = vote.outcome()
    assert outcome.stopped_early == bool(vote.outstanding)
    assert {member for loss in outcome.lost for member in loss.candidates} == lost
    present = len(ids) - len(lost)
    assert outcome.quorum == (present >= needed(len(ids), 0.5))
    if strategy is not Strategy.SIMILARITY:
        assert outcome.clusters == elect(tally(vote.ballots, strategy, len(ids))).clusters


@REPEATABLE
@given(polls(9), st.permutations(range(9)))
def test_a_whole_vote_ends_as_its_tally_in_any_order(ballots: list[Ballot], order: list[int]) -> None:
    ids = [each.candidate.id for each in ballots]
    vote = Vote(Strategy.MAJORITY, ids, adaptive=False)
    for place in order:
        if place < len(ballots):
            vote.add(ballots[place])
    assert vote.outcome().clusters[0].key == elect(tally(ballots, Strategy.MAJORITY, len(ids))).clusters[0].key


def test_quorum() -> None:
    assert [needed(n, 0.5) for n in (1, 2, 3, 8, 9)] == [1, 1, 2, 4, 5]
    assert needed(9, 0.0) == 1
    assert needed(9, 1.0) == 9
    with pytest.raises(InvalidRequest, match="fraction"):
        Vote(Strategy.MAJORITY, [1], quorum_fraction=math.nan)
    strict = Vote(Strategy.MAJORITY, range(1, 5), strict=True, adaptive=False, quorum_fraction=0.75)
    strict.add(cast(1, "a"))
    strict.lose([2], "b", "died")
    assert strict.state() is VoteState.PENDING
    strict.lose([3], "b", "died")
    assert strict.state() is VoteState.LOST
    # What there is can still be shown.
    outcome = strict.outcome((Loss("c", "never asked", ()),), warnings=("low memory",))
    assert (outcome.winner, outcome.quorum, outcome.finished) == (1, False, 1)
    assert outcome.lost == (Loss("b", "died", (2, 3)), Loss("c", "never asked", ()))
    assert outcome.warnings == ("low memory",)


def test_a_pending_vote_can_be_cut_off() -> None:
    vote = Vote(Strategy.MAJORITY, range(1, 9), adaptive=False)
    vote.add(cast(5, "a"))
    outcome = vote.outcome()
    assert (outcome.winner, outcome.stopped_early, outcome.quorum, outcome.planned) == (5, False, False, 8)


# --- similarity -------------------------------------------------------------------------------------------------------


def at(degrees: float, length: float = 1.0) -> tuple[float, float]:
    return length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))


def say(number: int, text: str, calls: tuple[ToolCall, ...] = ()) -> Ballot:
    made = Candidate(number, "a", text, 1, -0.5, FinishReason.STOP, 1.0, calls)
    return make_ballot(made, Strategy.SIMILARITY)


def plain_groups(angles: dict[int, float], threshold: float) -> set[tuple[int, ...]]:
    """Average linkage by the book: the mean over all pairs, computed anew for every pair of groups at every step."""
    groups = [[number] for number in sorted(angles)]

    def mean(a: list[int], b: list[int]) -> float:
        return sum(math.cos(math.radians(angles[i] - angles[j])) for i in a for j in b) / (len(a) * len(b))

    while len(groups) > 1:
        a, b = max(itertools.combinations(groups, 2), key=lambda pair: mean(*pair))
        if mean(a, b) < threshold:
            break
        groups = [each for each in groups if each not in (a, b)] + [a + b]
    return {tuple(sorted(each)) for each in groups}


@settings(REPEATABLE, max_examples=80)
@given(
    st.lists(st.floats(0, 360), min_size=1, max_size=9, unique=True),
    st.floats(0.5, 0.99),
    st.sampled_from([1.0, 1e-300, 1e300]),
)
def test_groups_are_those_of_average_linkage(angles: list[float], threshold: float, length: float) -> None:
    by_id = dict(enumerate(angles, 1))
    ballots = [say(number, "w" * number) for number in by_id]
    vectors = {number: at(angle, length) for number, angle in by_id.items()}
    found = {cluster.members for cluster in group(ballots, vectors, threshold)}
    # Cosines count to nine places, so a threshold within that of a mean may fall either way.
    assert found in (plain_groups(by_id, threshold - 1e-7), plain_groups(by_id, threshold + 1e-7))


@settings(REPEATABLE, max_examples=50)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_order(steps: list[int], rng: random.Random) -> None:
    ballots = [say(number, f"{'w' * number}") for number in range(1, len(steps) + 1)]
    vectors = {number: at(15 * step) for number, step in enumerate(steps, 1)}
    shuffled = rng.sample(ballots, len(ballots))
    assert group(ballots, vectors, 0.9) == group(shuffled, vectors, 0.9)


def test_equal_similarities_join_by_candidate_id() -> None:
    # Each is as close to its neighbour, and which pair joins first decides which one is left over.
    ballots = [say(number, "w" * number) for number in range(1, 5)]
    vectors = {number: at(15 * number) for number in range(1, 5)}
    found = {
        tuple(cluster.members for cluster in group(order, vectors, 0.9)) for order in itertools.permutations(ballots)
    }
    assert found == {((1, 2), (3, 4))}


def test_the_medoid_has_the_highest_mean_similarity() -> None:
    angles = {1: 0.0, 2: 4.0, 3: 11.0, 4: 13.0, 5: 20.0}
    ballots = [say(number, "w" * number) for number in angles]
    (cluster,) = group(ballots, {number: at(angle) for number, angle in angles.items()}, 0.9)
    best = max(angles, key=lambda i: sum(math.cos(math.radians(angles[i] - angles[j])) for j in angles))
    assert cluster.medoid.candidate.id == best == 3
    assert cluster.key == ballots[2].key
    # Two members are equally close to each other: form decides, not who came first.
    pair = [say(1, "red <|im_end|>"), say(2, "red")]
    assert pair[0].quality < pair[1].quality
    assert group(pair, {1: at(0), 2: at(1)}, 0.9)[0].medoid.candidate.id == 2


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("The bridge is safe.", "That bridge is safe.", True),
        ("The bridge is safe.", "The bridge is not safe.", False),
        ("You can.", "You can’t.", False),
        ("It's true", "It is false", False),
        ("It was founded in 1912.", "Founded 1912.", True),
        ("It was founded in 1912.", "It was founded in 1921.", False),
        ("It costs $1,000.", "The price: 1000 dollars", True),
        ("It costs 5.", "It costs −5.", False),
        ("Mix 2 eggs, 3 cups.", "Mix 3 cups and 2 eggs.", True),
        ("1. Boil\n2. Serve", "Boil, then serve", True),
        ("Nicht gut", "Gut so", False),
    ],
)
def test_numbers_and_negations_must_agree(one: str, other: str, agree: bool) -> None:
    clusters = group([say(1, one), say(2, other)], {1: at(0), 2: at(0)}, 0.9)
    assert (len(clusters) == 1) == agree


def test_what_is_no_negation() -> None:
    assert not any(
        map(negated, ["not only fast", "no doubt", "A knot", "notable", "no-one-liner-x", "note", "No. problem"[4:]])
    )
    assert all(map(negated, ["No.", "It isn't", "NEVER", "cannot", "without", "is not, only that"]))


def test_tool_calls_never_join_prose_or_other_calls() -> None:
    rome = (ToolCall("weather", '{"city": "Rome"}'),)
    paris = (ToolCall("weather", '{"city":"Paris"}'),)
    again = (ToolCall("weather", '{ "city" : "Rome" }', id="x"),)
    ballots = [say(1, "", rome), say(2, "", paris), say(3, 'tool:weather({"city":"Rome"})'), say(4, "", again)]
    clusters = group(ballots, dict.fromkeys(range(1, 5), (1.0, 0.0)), 0.5)
    assert sorted(cluster.members for cluster in clusters) == [(1, 4), (2,), (3,)]


@pytest.mark.parametrize("bad", [(), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0, 0.0)])
def test_a_vector_that_cannot_be_compared_agrees_with_nothing(bad: tuple[float, ...]) -> None:
    ballots = [say(1, "red"), say(2, "crimson"), say(3, "scarlet"), say(4, "Scarlet!")]
    vectors = {1: at(0), 2: at(1), 3: bad}
    for threshold in (0.5, -1.0, -math.inf):
        assert sorted(cluster.members for cluster in group(ballots, vectors, threshold)) == [(1, 2), (3, 4)]
    # Where a ballot of the same key has a vector, that one speaks for both.
    vectors[4] = at(2)
    assert [cluster.members for cluster in group(ballots, vectors, 0.99)] == [(1, 2, 3, 4)]


def test_blank_answers_join_nothing_and_win_nothing() -> None:
    ballots = [say(1, ""), say(2, "  "), say(3, "<think>hm</think> "), say(4, "red")]
    clusters = group(ballots, dict.fromkeys(range(1, 5), (1.0, 0.0)), 0.5)
    assert [cluster.members for cluster in clusters] == [(4,), (1, 2, 3)]
    assert group([], {}, 0.5) == ()


def test_grouping_64_answers_is_fast() -> None:
    rng = random.Random(3)
    ballots = [say(number, "w" * number) for number in range(1, 65)]
    centres = [[rng.gauss(0, 1) for _ in range(384)] for _ in range(5)]
    vectors = {n: [x + rng.gauss(0, 0.5) for x in centres[n % 5]] for n in range(1, 65)}
    group(ballots, vectors, 0.6)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        clusters = group(ballots, vectors, 0.6)
        best = min(best, time.process_time() - start)
    assert sorted(cluster.count for cluster in clusters) == [12, 13, 13, 13, 13]
    assert best < 1.0


def test_the_outcome_says_when_there_were_no_embeddings() -> None:
    vote = Vote(Strategy.SIMILARITY, [1, 2])
    vote.add(say(1, "red"))
    vote.add(say(2, "crimson"))
    without: Outcome = vote.outcome()
    assert without.dissent == (2,)
    assert any("no embeddings" in warning for warning in without.warnings)
    together = vote.outcome(vectors={1: at(0), 2: at(3)}, threshold=0.9)
    assert together.dissent == () == together.warnings
