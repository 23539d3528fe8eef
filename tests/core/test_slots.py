"""Which KV to let go."""

import random

from hypothesis import given
from hypothesis import strategies as st

from node.core.slots import Held, Speeds, common_prefix, interval_after, leave_context, leave_memory

SPEEDS = Speeds(prefill_s=1e-3, restore_s=1e-3, restore_s_per_byte=1e-9)
tokens = st.lists(st.integers(0, 2), max_size=40).map(tuple)


@given(tokens, tokens)
def test_common_prefix_is_the_longest(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(a, b) == common_prefix(b, a) == n
    for start in range(n + 1):
        for end in range(start, 41):
            assert common_prefix(a, b, start, end) == min(n, end)


def test_what_is_cheap_to_prefill_for_its_room_leaves_memory_first() -> None:
    dense = Held("dense", tuple(range(1000)), False, bytes=10_000, interval=1000.0)
    sparse = Held("sparse", tuple(range(10)), False, bytes=10_000, interval=1000.0)
    often = Held("often", tuple(range(10)), False, bytes=10_000, interval=2.0)
    assert [h.topic for h in leave_memory([dense, sparse, often], 0, SPEEDS)] == ["sparse", "dense", "often"]


def test_what_is_long_overdue_goes_before_what_is_new() -> None:
    old = Held("old", tuple(range(100)), False, bytes=1000, interval=5.0, used=0)
    new = Held("new", tuple(range(100)), False, bytes=1000, used=199)
    due = Held("due", tuple(range(100)), False, bytes=1000, interval=50.0, used=151)
    assert [h.topic for h in leave_memory([new, due, old], 200, SPEEDS)] == ["old", "new", "due"]


def test_only_resident_topics_leave_the_context() -> None:
    held = [Held("a", (1,), True), Held("b", (1,), False, bytes=16)]
    assert [h.topic for h in leave_context(held, 5, SPEEDS)] == ["a"]


def hits(trace: list[int], room: int, *, lru: bool) -> int:
    """Topics found in a memory for `room` equal copies, by our order or by LRU."""
    held: dict[str, Held] = {}
    uses: dict[str, tuple[float, int]] = {}
    found = 0
    for turn, number in enumerate(trace):
        topic = str(number)
        if topic in held:
            found += 1
        uses[topic] = interval_after(*uses.get(topic, (0.0, turn)), turn), turn
        held[topic] = Held(topic, tuple(range(500)), False, bytes=8000, interval=uses[topic][0], used=turn)
        if len(held) > room:
            if lru:
                del held[min(held.values(), key=lambda h: h.used).topic]
            else:
                del held[leave_memory(held.values(), turn, SPEEDS)[0].topic]
    return found


def test_round_robin_over_more_than_fits_still_hits() -> None:
    trace = list(range(80)) * 10
    assert hits(trace, 40, lru=True) == 0
    assert hits(trace, 40, lru=False) > 0.4 * len(trace)  # at best 39 of 80


def test_zipf_is_no_worse_than_lru() -> None:
    rng = random.Random(1)
    weights = [1 / (i + 1) for i in range(80)]
    trace = rng.choices(range(80), weights, k=4000)
    assert hits(trace, 40, lru=False) > hits(trace, 40, lru=True)


def test_a_change_of_topics_is_followed() -> None:
    trace = [i % 20 for i in range(2000)] + [20 + i % 20 for i in range(2000)]
    assert hits(trace, 20, lru=False) > 0.75 * len(trace)
