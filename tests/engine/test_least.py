"""How few rows of a prompt a step is given, by what kernels make of fewer."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from node.engine.least import FEW, MANY, Least


def play(least: Least, share: float, pieces: int, rng: random.Random | None = None) -> Counter[int]:
    """Pieces on kernels where few rows take this share of the time of many; how many pieces there were of each size."""
    seen: Counter[int] = Counter()
    for _ in range(pieces):
        rows = least.next()
        step, piece = 0.03, 0.08 * (share if rows == FEW else 1.0)
        if rng is not None:
            piece += (step + piece) * (rng.lognormvariate(0, 0.05) * (1.5 if rng.random() < 0.02 else 1) - 1)
        least.saw(rows, piece)
        seen[rows] += 1
    return seen


@pytest.mark.parametrize("share", [0.55, 0.8, 1.0])
def test_where_fewer_rows_save_little_a_prompt_keeps_its_speed(share: float) -> None:
    least = Least()
    sizes = play(least, share, 1000)
    assert least.rows == MANY
    assert sizes[MANY] > 950


@pytest.mark.parametrize("share", [0.25, 0.43])
def test_where_they_save_much_those_who_write_wait_less(share: float) -> None:
    least = Least()
    play(least, share, 60)
    assert least.rows == FEW
    sizes = play(least, share, 1500)
    assert least.rows == FEW
    assert 5 < sizes[MANY] < 15  # one in a hundred may be long


def test_on_a_machine_that_others_use_the_verdict_is_the_same() -> None:
    for seed in range(10):
        ours, stock = Least(), Least()
        play(ours, 0.58, 2000, random.Random(seed))
        play(stock, 0.36, 2000, random.Random(seed))
        assert (ours.rows, stock.rows) == (MANY, FEW)


def test_what_turns_out_to_be_wrong_is_forgotten() -> None:
    least = Least()
    play(least, 0.3, 100)
    assert least.rows == FEW
    play(least, 0.8, 1000)
    assert least.rows == MANY


def test_pieces_of_other_sizes_say_nothing() -> None:
    least = Least()
    for _ in range(200):
        least.saw(MANY, 0.1)
        least.saw(MANY - 1, 0.001)
        least.saw(1, 0.001)
    assert least.rows == MANY
