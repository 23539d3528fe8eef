"""Shares of a vote: they add up, stay within what nodes have free, and follow speed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.placement import (
    CANDIDATES_A_NODE,
    FAST_ENOUGH,
    MOST_BY_DEFAULT,
    UNSURE,
    Participant,
    default_candidates,
    share,
    wave,
)
from node.types import EarlyStop, Strategy

PARTICIPANTS = st.lists(
    st.tuples(st.floats(0, 1e6), st.integers(-2, 256)).map(lambda p: p), min_size=1, max_size=8
).map(lambda ps: [Participant(f"n{i}", speed, free) for i, (speed, free) in enumerate(ps)])


@given(st.integers(1, 64), PARTICIPANTS)
def test_shares_add_up_within_what_is_free(candidates: int, nodes: list[Participant]) -> None:
    shares = share(candidates, nodes)
    assert sum(shares.values()) == candidates
    assert next(iter(shares)) == nodes[0].id, "the coordinator comes first and has at least one"
    assert min(shares.values()) >= 1
    free = {n.id: n.free for n in nodes}
    assert all(n <= free[id] for id, n in shares.items() if id != nodes[0].id)
    # The coordinator goes past what it has free only once nobody else has room.
    if shares[nodes[0].id] > max(nodes[0].free, 1):
        assert all(shares.get(n.id, 0) == max(n.free, 0) for n in nodes[1:])
    assert share(candidates, nodes) == shares, "every run plans the same"


@given(st.integers(1, 64), st.lists(st.floats(1, 100), min_size=1, max_size=6))
def test_shares_follow_speed(candidates: int, speeds: list[float]) -> None:
    """Beyond its one, nobody has a candidate that another node would have finished earlier."""
    nodes = [Participant(f"n{i}", speed, 256) for i, speed in enumerate(speeds)]
    shares = share(candidates, nodes)
    for slow in nodes:
        held = shares.get(slow.id, 0)
        if held <= 1:
            continue
        for other in nodes:
            assert held / slow.speed <= (shares.get(other.id, 0) + 1) / other.speed * (1 + 1e-9)


@given(st.integers(1, 64), st.lists(st.floats(1, 1000), min_size=1, max_size=6))
def test_everyone_takes_part_who_may_be_as_fast_and_nobody_else_is_waited_for(
    candidates: int, speeds: list[float]
) -> None:
    nodes = [Participant(f"n{i}", speed, 256) for i, speed in enumerate(speeds)]
    shares = share(candidates, nodes)
    speed = {n.id: min(n.speed, FAST_ENOUGH) for n in nodes}
    able = [n for n in nodes if n is nodes[0] or speed[n.id] * UNSURE >= max(speed.values())]
    assert sum(n.id in shares for n in able) == min(candidates, len(able))
    for slow in [n for n in nodes if n not in able and n.id in shares]:
        assert all(shares[slow.id] / speed[slow.id] <= (shares.get(o, 0) + 1) / speed[o] * (1 + 1e-9) for o in speed)


def test_examples() -> None:
    def shared(candidates: int, *speed_and_free: tuple[float, int]) -> list[int]:
        nodes = [Participant(str(i), s, f) for i, (s, f) in enumerate(speed_and_free)]
        shares = share(candidates, nodes)
        return [shares.get(n.id, 0) for n in nodes]

    assert shared(9, (10, 16), (10, 16), (10, 16)) == [3, 3, 3]
    assert shared(9, (20, 16), (10, 16)) == [6, 3]
    assert shared(4, (1, 16), (1000, 16)) == [1, 3], "a slow coordinator keeps one, to stream and to outlive its peers"
    assert shared(8, (10, 2), (10, 2)) == [6, 2], "what nobody has room for waits at the coordinator"
    assert shared(4, (10, 16), (10, 0)) == [4, 0]
    assert shared(8, (390, 16), (80, 16)) == [7, 1], "it may be as fast as the other"
    assert shared(8, (390, 16), (40, 16)) == [8, 0], "its first would come when the other has ten"
    assert shared(16, (390, 16), (40, 16)) == [15, 1]
    assert shared(8, (9000, 16), (900, 16)) == [4, 4], "both are fast enough"
    assert shared(8, (9000, 16), (90, 16)) == [7, 1], "measured on a busy machine"
    assert shared(6, (30, 16), (0, 16)) == [3, 3], "a node that was never measured counts as a usual one"
    assert shared(2, (0, 0)) == [2]


@given(
    st.integers(1, 64),
    PARTICIPANTS,
    st.lists(st.tuples(st.booleans(), st.floats(1 / 16, 1)), min_size=8, max_size=8),
)
def test_guests_have_at_most_half_and_what_they_leave_is_computed(
    candidates: int, nodes: list[Participant], of: list[tuple[bool, float]]
) -> None:
    nodes = [nodes[0], *(replace(n, is_guest=g, weight=w) for n, (g, w) in zip(nodes[1:], of, strict=False))]
    shares = share(candidates, nodes)
    assert sum(shares.values()) == candidates
    assert shares[nodes[0].id] >= 1
    assert sum(shares.get(n.id, 0) for n in nodes if n.is_guest) <= candidates // 2
    assert all(shares.get(n.id, 0) <= max(n.free, 0) for n in nodes[1:])


def test_guests_by_speed_and_weight() -> None:
    def shared(candidates: int, own: tuple[float, float], *guests: tuple[float, float]) -> list[int]:
        nodes = [Participant(str(i), speed, 16, i > 0, weight) for i, (speed, weight) in enumerate([own, *guests])]
        shares = share(candidates, nodes)
        return [shares.get(n.id, 0) for n in nodes]

    assert shared(8, (10, 1), (10, 1)) == [4, 4]
    assert shared(8, (10, 1), (200, 1)) == [4, 4], "a small model is fast, and has its half"
    assert shared(8, (40, 1), (2, 1)) == [7, 1], "a big one is slow, and heard"
    assert shared(8, (40, 1), (1, 1)) == [8, 0], "far too slow"
    assert shared(8, (10, 1), (10, 1 / 16)) == [7, 1], "a poor record"
    assert shared(8, (10, 1 / 16), (10, 1)) == [4, 4], "the poorer model is asked for half all the same"
    assert shared(9, (10, 1), (10, 1), (10, 0.3)) == [5, 3, 1]
    assert shared(1, (1, 1), (400, 1)) == [1, 0]
    assert sum(shared(8, (5e-324, 0.5), (5e-324, 0.5))) == 8, "a speed that no node has"


def test_nothing_to_share_is_a_defect() -> None:
    with pytest.raises(ValueError, match="needs candidates"):
        share(0, [Participant("a", 1, 1)])
    with pytest.raises(ValueError, match="needs candidates"):
        share(1, [])


def test_default_candidates() -> None:
    assert [default_candidates(n) for n in (0, 1, 2, 3, 40)] == [4, 4, 8, 12, 12]
    assert default_candidates(1) == CANDIDATES_A_NODE
    assert [default_candidates(n, g) for n, g in ((1, 1), (1, 9), (2, 1), (3, 3))] == [8, 8, 12, 12]
    assert (
        share(
            default_candidates(1, 9), [Participant("me", 1, 16), *(Participant(str(i), 1, 16, True) for i in range(9))]
        )["me"]
        == CANDIDATES_A_NODE
    ), "guests are no burden to who is asked"
    assert default_candidates(1000) == MOST_BY_DEFAULT


@pytest.mark.parametrize(
    ("mine", "planned", "strategy", "early_stop", "first"),
    [
        (9, 9, Strategy.MAJORITY, EarlyStop.ADAPTIVE, 4),
        (9, 9, Strategy.CONFIDENCE, EarlyStop.EXACT, 5),
        (4, 8, Strategy.MAJORITY, EarlyStop.ADAPTIVE, 0),
        (5, 16, Strategy.MAJORITY, EarlyStop.EXACT, 0),
        (9, 9, Strategy.MAJORITY, EarlyStop.OFF, 0),
        (9, 9, Strategy.SIMILARITY, EarlyStop.ADAPTIVE, 0),
        (9, 9, Strategy.FASTEST, EarlyStop.ADAPTIVE, 0),
    ],
)
def test_a_wave_is_what_a_vote_can_be_decided_by(
    mine: int, planned: int, strategy: Strategy, early_stop: EarlyStop, first: int
) -> None:
    assert wave(mine, planned, strategy, early_stop) == first
