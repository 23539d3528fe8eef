"""Thoughts: set apart from answers at the end and while they are written, with the same result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.thoughts import Splitter, answer, joined, opened, split


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("plain", "", "plain"),
        ("  plain ", "", "  plain "),
        ("<think>\nhm\n</think>\n\n42", "hm", "42"),
        ("\n <think>hm</think>42 ", "hm", "42 "),
        ("<think>\n\n</think>\n\n42", "", "42"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("opened in the prompt</think>42", "opened in the prompt", "42"),
        ("say <think>", "", "say <think>"),
        ("", "", ""),
        ("<thin", "", "<thin"),
    ],
)
def test_what_is_a_thought(text: str, thought: str, said: str) -> None:
    assert split(text) == (thought, said)
    assert answer(text) == said


def test_what_a_prompt_opens() -> None:
    assert opened("<|assistant|>\n<think>\n") == "<think>\n"
    assert opened("<think>") == "<think>"
    assert opened("<|assistant|>\n") == ""
    assert opened("<think>\n\n</think>\n\n") == ""  # of a model that is told not to think


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "think", ">", " ", "\n", "a", "bc"]))


@given(PIECES)
def test_in_pieces_as_in_one(pieces: list[str]) -> None:
    """Where a text begins with its thought, or has none, both say the same; nothing is lost but white space."""
    splitter = Splitter()
    found = [splitter.feed(p) for p in pieces] + [splitter.finish()]
    thought, said = ("".join(part) for part in zip(*found, strict=True))
    text = "".join(pieces)
    if text.lstrip().startswith("<think>"):
        assert (thought, said) == split(text)
    else:
        assert (thought, said) == ("", text)


@given(st.text(), st.text())
def test_joined_is_split_again(thought: str, said: str) -> None:
    thought, said = split(joined(thought.replace("</think>", ""), said))
    assert split(joined(thought, said)) == (thought, said)


def test_what_is_certain_is_told_at_once() -> None:
    splitter = Splitter()
    told = [splitter.feed(p) for p in ("<think>", "\n", "so", " be", "\n", "</thi", "nk>", "\n\n", "42", " ")]
    assert told == [
        ("", ""),
        ("", ""),
        ("so", ""),
        (" be", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "42"),
        ("", " "),
    ]
