"""Markdown on a terminal: blocks are set when they are complete, and an answer in pieces looks like the whole."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from node.cli.markdown import Paper, complete


def console() -> Console:
    return Console(file=io.StringIO(), width=40, force_terminal=False, color_system=None)


def shown(*pieces: str) -> str:
    to = console()
    paper, text = Paper(to), ""
    for piece in pieces:
        text += piece
        paper.write(text)
    paper.finish(text)
    return to.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one", 0),
        ("one\n", 0),
        ("one\n\n", 5),
        ("one\n\ntwo", 5),
        ("```\na\n\nb", 0),
        ("```\na\n\nb\n```\n\nc", 14),
        ("~~~\n```\n\n~~~\n", 0),
    ],
)
def test_where_a_block_ends(text: str, end: int) -> None:
    assert complete(text, 0) == end


def test_lines_stay_lines_and_marks_are_gone() -> None:
    lines = shown("12+30=42\nanswer: **42**\n\n* one\n* two\n").splitlines()
    assert lines[:2] == ["12+30=42", "answer: 42"]
    assert [line.strip() for line in lines[-2:]] == ["• one", "• two"]


@pytest.mark.parametrize("text", ["28*7=196\non 3 days: 196*3=588", "2*3*4", "`a*b*c` and 2*3*4"])
def test_sums_keep_their_stars(text: str) -> None:
    assert shown(text).split() == text.replace("`", "").split()


TEXTS = st.lists(
    st.sampled_from(
        ["word ", "**bold** ", "\n", "\n\n", "* item\n", "```\ncode\n```\n", "x < y ", "[red]", "# head\n"]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_pieces_give_the_words_of_the_whole(text: str, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    plain = shown(*pieces).split()
    assert [w for w in plain if w.isalpha()] == [w for w in shown(text).split() if w.isalpha()]


def test_an_answer_that_begins_anew_is_whole() -> None:
    to = console()
    paper = Paper(to)
    paper.write("first half")
    paper.finish("another answer")
    assert "another answer" in to.file.getvalue()  # type: ignore[attr-defined]
    assert paper.is_blank
