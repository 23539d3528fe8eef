"""Measurements that something held up, and what is decided by them."""

from __future__ import annotations

import pytest

from node.core.recent import Recent
from node.core.snapshot import goes_on, is_worth
from node.replicator.rates import LINKS_KEPT, MEASURED_BYTES, MOST_LINKS, Measured


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_quickest_of_some_counts_and_what_is_old_is_forgotten() -> None:
    recent = Recent(kept=3, for_s=10.0)
    assert recent.least(0.0, 7.0) == 7.0
    for at, figure in enumerate((5.0, 2.0, 3.0, 4.0)):
        recent.add(figure, float(at))
    assert recent.least(4.0, 7.0) == 2.0
    recent.add(9.0, 5.0)  # 2.0 is the fourth from the end
    assert recent.least(5.0, 7.0) == 3.0
    assert recent.middle() == 4.0
    assert recent.least(15.0, 7.0) == 3.0
    assert recent.least(16.0, 7.0) == 7.0
    recent.add(9.0, 3600.0)  # the hour that it took is no reason to forget the others
    assert recent.least(3600.0, 7.0) == 4.0


def test_one_reading_that_was_held_up_does_not_end_all_reading() -> None:
    """A node that stands still for seconds while it puts a topic together brings the next one back all the same."""
    clock = Clock()
    measured = Measured(clock=clock)
    size, prefill_s = 6_000_000, 1.4e-3
    for took in (0.01, 5.0, 40.0):
        measured.decoded(size, took)
        assert is_worth(512, prefill_s, size, 0, measured.local())


def test_a_disk_that_is_slow_each_time_is_believed_and_tried_again_later() -> None:
    clock = Clock()
    measured = Measured(clock=clock)
    size, prefill_s = 6_000_000, 1.4e-3
    for _ in range(10):
        measured.decoded(size, 2.0)
    assert not is_worth(512, prefill_s, size, 0, measured.local())
    clock.now = 3600.0
    assert is_worth(512, prefill_s, size, 0, measured.local())


def test_a_link_is_what_most_transfers_say() -> None:
    measured = Measured(clock=Clock())
    measured.moved("a", MEASURED_BYTES - 1, 99.0)
    assert measured.is_wanted("a")
    for seconds in (0.1, 0.1, 60.0, 0.1, 60.0):
        measured.moved("a", 1_000_000, seconds)
    assert measured.rates("a").link_s == pytest.approx(1e-7)
    for _ in range(LINKS_KEPT):
        measured.moved("a", 1_000_000, 5.0)
    assert measured.rates("a").link_s == measured.slowest_link_s == pytest.approx(5e-6)


def test_a_link_that_was_too_slow_for_something_is_measured_again() -> None:
    measured = Measured(clock=Clock())
    measured.moved("a", 1_000_000, 60.0)
    assert not measured.is_wanted("a")
    measured.doubt("a")
    assert measured.is_wanted("a")
    measured.moved("a", 1_000_000, 0.1)
    assert not measured.is_wanted("a")


def test_links_of_nodes_that_come_and_go_are_forgotten_in_the_end() -> None:
    measured = Measured(clock=Clock())
    for i in range(MOST_LINKS + 10):
        measured.moved(f"n{i}", 1_000_000, 0.1)
        measured.moved("ours", 1_000_000, 60.0)
        measured.doubt(f"n{i}")
        measured.doubt(f"never met {i}")
    assert len(measured.links()) == MOST_LINKS
    assert "ours" in measured.links(), "the one that carries something stays"
    assert measured.slowest_link_s == pytest.approx(6e-5)
    assert measured._doubted <= measured.links().keys()


def test_a_pull_goes_on_as_long_as_the_rest_comes_sooner_than_it_is_computed() -> None:
    assert goes_on(0.5, 0, 100, 1.0)
    assert not goes_on(1.5, 0, 100, 1.0)  # nothing came
    assert goes_on(3.0, 90, 100, 1.0)  # it was held up, and a third of a second is left
    assert not goes_on(3.0, 50, 100, 1.0)
    assert goes_on(3.0, 100, 100, 1.0)
