"""What leaves the disk first."""

from node.core.budget import Stored, leave, used
from node.types import Version

SIZES = {bytes([i]): 1000 for i in range(20)}


def stored(topic: str, tokens: int, keys: str, last_used: float = 0.0) -> Stored:
    return Stored(topic, Version(0, 1, "n"), tokens, tuple(bytes([int(k, 20)]) for k in keys), 100, last_used)


def order(*held: Stored, now: float = 1000.0) -> str:
    return "".join(s.topic for s in leave(held, SIZES, now))


def test_the_longest_unused_goes_first() -> None:
    assert order(stored("a", 100, "01", 10), stored("b", 100, "23", 900), stored("c", 100, "45", 500)) == "acb"


def test_of_equal_age_what_is_quick_to_compute_for_its_room_goes_first() -> None:
    assert order(stored("a", 4000, "01"), stored("b", 100, "23")) == "ba"


def test_room_that_would_not_be_free_counts_for_nothing() -> None:
    """a's blocks are b's too: letting it go frees its header alone."""
    assert order(stored("a", 100, "01"), stored("b", 150, "012"), stored("c", 100, "45"))[0] == "c"


def test_a_use_is_remembered() -> None:
    assert used(stored("a", 1, "0", 5.0), 9.0).last_used == 9.0
