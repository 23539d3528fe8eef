"""Lines on a narrow terminal end between words, and commands stay whole."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from node.cli import render
from node.cli.turn import View
from node.cli.wrap import LEAST, fitted, wrapped
from node.v1 import generate_pb2, types_pb2


def test_further_lines_are_indented() -> None:
    assert wrapped("  fit  16 sequences x 2048 tokens", 26, 7) == "  fit  16 sequences x 2048\n  tokens", "too narrow"
    assert (
        wrapped("  fit  16 sequences x 2048 tokens, 144 MB", 31, 7)
        == "  fit  16 sequences x 2048\n       tokens, 144 MB"
    )
    assert wrapped("short", 40, 2) == "short"


def test_a_command_is_not_broken() -> None:
    said = "to join it, run `python -m node pair` there, then here"
    assert wrapped(said, 30, 2).splitlines() == ["to join it, run", "  `python -m node pair` there,", "  then here"]
    assert wrapped("a ` b", 40) == "a ` b"


def test_what_is_longer_than_a_line_begins_where_it_is() -> None:
    path = "/" + "x" * 29
    assert wrapped(f"ok   token: {path}, for you only", 24, 5) == f"ok   token: {path}, for\n  you only"


@given(st.text("ab `\n", max_size=80), st.integers(LEAST, 60), st.integers(0, 20))
def test_nothing_is_lost_and_no_line_is_too_long(text: str, width: int, indent: int) -> None:
    made = wrapped(text, width, indent)
    assert made.split() == text.split()
    if "`" not in text and max(map(len, text.split()), default=0) + indent <= width:
        assert all(len(line.strip()) <= width for line in made.splitlines())


def test_what_a_program_reads_is_not_broken() -> None:
    assert fitted("word " * 40, io.StringIO(), 2) == "word " * 40


def test_a_vote_fits_a_narrow_terminal() -> None:
    clusters = [
        types_pb2.Cluster(key=f"answer {i} " + "long " * 9, count=3, weight=3, medoid="x", members=[i]) for i in (1, 2)
    ]
    made = [types_pb2.Candidate(id=i, node="a" * 10) for i in (1, 2)]
    response = generate_pb2.GenerateResponse(
        outcome=types_pb2.Outcome(clusters=clusters, winner=1, strategy="majority", planned=6, finished=6),
        candidates=made,
    )
    drawn = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None, markup=False, soft_wrap=True)
    with drawn.capture() as capture:
        render.votes(drawn, response, {"a" * 10: "vm"})
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 40
    assert " 50% " in lines[1]
    assert "vm: 1" in lines[1]


def test_what_is_drawn_anew_while_a_vote_goes_on_has_no_line_that_is_too_long() -> None:
    view = View(quiet=True)
    leader = generate_pb2.Leader(candidate_id=1, share=0.57, answer="called tom " * 5)
    view._planned, view._finished, view._leader = 8, {1: "It is called Tom, I think, " * 4}, leader
    drawn = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None, soft_wrap=True)
    with drawn.capture() as capture:
        drawn.print(view._picture())
    lines = capture.get().splitlines()
    assert (len(lines), max(map(len, lines))) == (2, 40)
    assert "1/8 candidates" in lines[0]


def test_an_answer_that_was_kept_has_no_table() -> None:
    drawn = Console(file=io.StringIO(), width=80)
    with drawn.capture() as capture:
        render.votes(drawn, generate_pb2.GenerateResponse(outcome=types_pb2.Outcome(strategy="majority")), {})
    assert capture.get().startswith("strategy")
