"""The most that was measured, and how it wears off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.peak import HALF_LIFE_S, Peak, peak, worn

DAY = 86400.0


def test_noise_only_lowers_so_the_most_counts() -> None:
    kept = peak(None, 40.0, 0.0)
    assert kept == Peak(40.0, 0.0)
    assert peak(kept, 30.0, DAY) == kept
    assert peak(kept, 41.0, DAY) == Peak(41.0, DAY)
    assert peak(kept, 39.9, DAY) == Peak(39.9, DAY), "it has worn off by more than that: a new measurement counts"


def test_a_machine_that_became_slower_is_known_as_such_in_a_month() -> None:
    kept = Peak(40.0, 0.0)
    for day in range(1, 29):
        assert peak(kept, 20.0, day * DAY) == kept
    assert peak(kept, 20.0, HALF_LIFE_S) == Peak(20.0, HALF_LIFE_S)


@given(st.floats(0.1, 1e12), st.floats(-1e9, 1e9))
def test_a_clock_that_goes_back_makes_nothing_of_it(value: float, age: float) -> None:
    left = worn(Peak(value, 0.0), age)
    assert 0 <= left <= value
    assert left == value or age > 0
    assert left == pytest.approx(value / 2 ** (max(age, 0) / HALF_LIFE_S))
