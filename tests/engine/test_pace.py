"""What is learned of steps, and what follows."""

from hypothesis import given
from hypothesis import strategies as st

from node.engine.pace import FIRST_ROOM, LEAST_ROOM, STALL, STALL_MOST, STALL_S, Pace


def taught(times: dict[int, float], prefill_s: float = 1e-3) -> Pace:
    pace = Pace(prefill_s)
    for rows, seconds in times.items():
        pace.saw(rows, 0, seconds)
    return pace


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
    assert Pace(1e-3).room(1) == FIRST_ROOM
    assert taught({1: 0.020}, prefill_s=1e-3).room(1) == int((STALL - 1) * 20)
    assert taught({1: 0.020}, prefill_s=1e-4).room(1) == int((STALL - 1) * 200)
    assert taught({1: 0.001}, prefill_s=1e-2).room(1) == LEAST_ROOM


def test_the_more_wait_the_longer_may_others_be_held_up_but_not_for_ever() -> None:
    pace = taught({1: 0.020})
    assert pace.room(1, 1) == pace.room(1) < pace.room(1, 2) < pace.room(1, 5) < pace.room(1, 100)
    assert abs(0.020 + pace.room(1, 100) * pace.prefill_s - STALL_S) < 2e-3
    slow = taught({1: 0.300})
    assert slow.room(1, 1) == int((STALL - 1) * 0.300 / 1e-3) < slow.room(1, 2)
    assert abs(0.300 + slow.room(1, 100) * slow.prefill_s - STALL_MOST * 0.300) < 2e-3


def test_the_speed_of_prompts_is_learned_alone_and_beside_others() -> None:
    pace = taught({1: 0.020}, prefill_s=1e-3)
    pace.saw(0, 512, 512 * 3e-3)
    assert pace.prefill_s == 3e-3  # before, it was a guess
    known = Pace(1e-3, is_measured=True)
    known.saw(0, 512, 512 * 3e-3)
    assert abs(known.prefill_s - 1.6e-3) < 1e-9
    for _ in range(30):
        pace.saw(0, 512, 512 * 2e-3)
    assert abs(pace.prefill_s - 2e-3) < 1e-4
    for _ in range(30):
        pace.saw(1, 20, 0.020 + 20 * 1e-3)
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
