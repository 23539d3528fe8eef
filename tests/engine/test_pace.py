"""What is learned of steps, and what follows."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.least import MANY
from node.engine.pace import FIRST_ROOM, FURTHER, STALL, STALL_MOST, STALL_S, Pace, Room
from node.engine.rows import UNIT, RowCost


def taught(times: dict[int, float], prefill_s: float = 1e-3) -> Pace:
    pace = Pace(prefill_s)
    for rows, seconds in times.items():
        pace.saw(rows, 0, seconds)
    return pace


def rows(pace: Pace, writing: int, waiting: int = 1, before: int = 0) -> int:
    """Rows of a prompt, of which so many are computed, that may join a step."""
    return pace.room(writing, waiting, 10_000).fits(pace.row_s(before))


def test_between_and_beyond_what_was_seen() -> None:
    pace = taught({1: 0.020, 5: 0.040})
    assert pace.step_s(1) == 0.020
    assert abs(pace.step_s(3) - 0.030) < 1e-9
    assert abs(pace.step_s(7) - 0.044) < 1e-9  # two rows more, at twice a prompt's token each
    assert taught({4: 0.030}).step_s(2) == 0.030
    assert Pace(1e-3).step_s(2) == 0.0


def test_one_slow_step_counts_little_and_a_faster_machine_is_believed() -> None:
    pace = taught({1: 0.020})
    pace.saw(1, 0, 1.0)
    assert pace.step_s(1) < 0.070
    for _ in range(10):
        pace.saw(1, 0, 0.010)
    assert pace.step_s(1) < 0.015


def test_prompts_enter_as_far_as_others_can_wait() -> None:
    assert rows(Pace(1e-3), 1) == FIRST_ROOM
    assert rows(taught({1: 0.020}), 0) == 10_000  # nobody waits
    assert rows(taught({1: 0.020}, prefill_s=1e-3), 1) == int((STALL - 1) * 20)
    assert rows(taught({1: 0.020}, prefill_s=1e-4), 1) == int((STALL - 1) * 200)
    assert rows(taught({1: 0.001}, prefill_s=1e-2), 1) == MANY
    assert taught({1: 0.020}).room(1, 1, 5).fits(1e-3) == 5


def test_the_more_wait_the_longer_may_others_be_held_up_but_not_for_ever() -> None:
    pace = taught({1: 0.020})
    assert rows(pace, 1) < rows(pace, 1, 2) < rows(pace, 1, 5) < rows(pace, 1, 100)
    assert rows(pace, 1, 2) == int((STALL - 1 + FURTHER) * 20)
    assert abs(0.020 + rows(pace, 1, 100) * pace.prefill_s - STALL_S) < 2e-3
    slow = taught({1: 0.300})
    assert rows(slow, 1) == int((STALL - 1) * 0.300 / 1e-3) < rows(slow, 1, 2)
    assert abs(0.300 + rows(slow, 1, 100) * slow.prefill_s - STALL_MOST * 0.300) < 2e-3


def test_what_prompts_take_of_the_room_others_have_not() -> None:
    room = Room(100, 0.030, MANY)
    assert room.fits(1e-3) == 30
    assert room.fits(1e-3, 1 / 4) == 7
    room.take(7, 1e-3)
    assert room.fits(1e-3) == 23
    assert room.fits(4e-3) == 5
    room.take(23, 1e-3)
    assert room.fits(1e-3) == 0
    dear = Room(100, 0.030, MANY)
    assert dear.fits(1.0, 1 / 4) == MANY // 4
    dear.take(MANY // 4, 1.0)
    assert dear.fits(1.0) == MANY - MANY // 4
    assert Room(100, 0.030, 2).fits(1.0, 1 / 4) == 1  # the oldest has a part of the least, too


@given(st.floats(1e-4, 1e-2), st.floats(0, 3), st.floats(1e-5, 1e-1))
def test_that_rows_grow_dearer_is_learned(row_s: float, growth: float, guess: float) -> None:
    """Whatever was believed before: after five prompts of 4,000 tokens it is known at both ends, within a quarter."""
    cost = RowCost(guess)

    def real(before: float) -> float:
        return row_s * (1 + growth * before / UNIT)

    for _ in range(5):
        for before in range(0, 4000, 20):
            cost.saw(before, real(before), 0.3, 0.1)
    for before in (0, 2000, 4000):
        assert real(before) / 1.25 < cost.at(before) < 1.25 * real(before)


def test_a_step_that_is_far_too_long_counts_as_twice_as_long() -> None:
    cost = RowCost(1e-3)
    cost.saw(0, 1.0, 0.3, 0.1)
    assert abs(cost.at(0) - 1.1e-3) < 1e-9


def test_the_speed_of_prompts_is_learned_alone_and_beside_others() -> None:
    pace = taught({1: 0.020}, prefill_s=1e-3)
    pace.saw(0, 512, 0.020 + 512 * 3e-3)
    assert pace.prefill_s == 3e-3  # before, it was a guess
    known = Pace(1e-3, is_measured=True)
    known.saw(0, 512, 512 * 2e-3)
    assert abs(known.prefill_s - 1.3e-3) < 1e-9
    for _ in range(30):
        pace.saw(0, 512, 0.020 + 512 * 2e-3)
    assert abs(pace.prefill_s - 2e-3) < 1e-4
    for _ in range(30):
        pace.saw(1, 20, 0.020 + 20 * 1e-3, 0)
    assert abs(pace.prefill_s - 1e-3) < 1e-4


def test_guesses_are_worth_it_where_rows_are_cheap_and_guesses_are_good() -> None:
    flat = taught({1: 0.020, 8: 0.021})
    steep = taught({1: 0.020, 8: 0.160})
    assert flat.worth(1, 1, 7, 0.9) == 7
    assert flat.worth(1, 1, 7, 0.001) == 0
    assert steep.worth(1, 1, 7, 0.9) == 0
    assert Pace(1e-3).worth(1, 1, 7, 0.9) == 0  # nothing is known yet
    # In a full batch a row is dearer than what it brings.
    assert taught({8: 0.043, 16: 0.086}).worth(8, 8, 7, 0.5) == 0


@given(st.integers(1, 16), st.integers(0, 16), st.floats(0, 1), st.dictionaries(st.integers(1, 32), st.floats(1e-4, 1)))
def test_guesses_never_make_fewer_tokens_a_second(rows: int, most: int, chance: float, times: dict[int, float]) -> None:
    pace = taught(times)
    more = pace.worth(rows, rows, most, chance)
    assert 0 <= more <= most
    if more:
        gained = sum(chance**i for i in range(1, more + 1))
        assert (rows + gained) / pace.step_s(rows + more) > rows / pace.step_s(rows)


def test_the_speed_of_a_small_step_is_steady() -> None:
    """A burst of quick steps, or of slow ones, shorter than a window changes nothing; time counts, not steps."""
    pace = Pace(1e-3)
    for _ in range(3):
        pace.saw(1, 0, 0.002)
    assert pace.small_step_s == 0.002, "before a window is full, the mean of what there is"
    for _ in range(2000):
        pace.saw(1, 0, 0.002)
    for _ in range(64):
        pace.saw(1, 0, 0.0001)
    pace.saw(4, 0, 0.5)
    assert abs(pace.small_step_s - 0.002) < 1e-6
    for _ in range(800):
        pace.saw(1, 0, 0.005)
    assert abs(pace.small_step_s - 0.005) < 1e-6, "what lasts is believed"
