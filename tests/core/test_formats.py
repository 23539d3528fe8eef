"""Other formats of thoughts and calls: told in the one that everything knows, whole or in any pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.core import harmony, mistral, thoughts, tools
from node.core.formats import Format, of, opened, reader, tags, thinks, whole
from node.types import Tool

ANALYSIS, FINAL, COMMENTARY = (f"<|channel|>{c}<|message|>" for c in ("analysis", "final", "commentary"))
NEXT = "<|end|><|start|>assistant"
TO_ADD = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
TOOLS = (Tool("add"), Tool("sub"))
Said = tuple[str, str, list[tuple[str, dict[str, object]]]]


def read(format: Format, text: str) -> Said:
    """The thought, the answer and the calls of a text, as they come out in the end."""
    thought, said = thoughts.split(whole(format, text))
    said, calls = tools.parse(said, TOOLS)
    return thought, said, [(c.name, json.loads(c.arguments)) for c in calls]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{ANALYSIS}So 42.{NEXT}{FINAL}It is 42.", ("So 42.", "It is 42.", [])),
        (f"{ANALYSIS}So 42.<|end|>\n<|start|>assistant{FINAL} It is 42.<|return|>", ("So 42.", "It is 42.", [])),
        (f"{ANALYSIS}So.{NEXT}{ANALYSIS}Yes.{NEXT}{FINAL}42", ("So.\n\nYes.", "42", [])),
        (f"{FINAL}42", ("", "42", [])),
        (f"{ANALYSIS}{NEXT}{FINAL}42", ("", "42", [])),
        (f"{ANALYSIS}cut in the mid", ("cut in the mid", "", [])),
        (f"{ANALYSIS}cut{NEXT}<|channel|>fin", ("cut", "", [])),
        (f"{ANALYSIS}no end<|start|>assistant{FINAL}42", ("no end", "42", [])),
        (f"{ANALYSIS}no start<|end|>{FINAL}42", ("no start", "42", [])),
        (f'{ANALYSIS}Add.{NEXT}{TO_ADD}{{"a": 1}}<|call|>', ("Add.", "", [("add", {"a": 1})])),
        (f'{ANALYSIS}Add.{NEXT}{TO_ADD}{{"a": 1}}', ("Add.", "", [("add", {"a": 1})])),
        (f'{ANALYSIS}x{NEXT} to=functions.add<|channel|>commentary json<|message|>{{"a":1}}',
         ("x", "", [("add", {"a": 1})])),
        (' to=functions.add<|channel|>analysis<|message|>{"a": 1}', ("", "", [("add", {"a": 1})])),
        (f'{COMMENTARY}I add.{NEXT}{TO_ADD}{{"a": 1}}', ("", "I add.", [("add", {"a": 1})])),
        (f'{TO_ADD}{{}}{NEXT}{TO_ADD.replace("add", "sub")}{{"b": "<tool_call>"}}',
         ("", "", [("add", {}), ("sub", {"b": "<tool_call>"})])),
        (f'{FINAL}42{NEXT}{ANALYSIS}hm{NEXT}{FINAL}43', ("", "42\n\n43", [])),
        ("Hello <|there", ("", "Hello <|there", [])),
        ('{"name": "x"}', ("", '{"name": "x"}', [])),
        (f"{ANALYSIS}its </think> ends it{NEXT}{FINAL}42", ("its </ think> ends it", "42", [])),
        ("", ("", "", [])),
    ],
)  # fmt: skip
def test_harmony(text: str, found: Said) -> None:
    assert read(Format.HARMONY, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[THINK]So 42.[/THINK]It is 42.", ("So 42.", "It is 42.", [])),
        ("[THINK]cut", ("cut", "", [])),
        ("It is 42.", ("", "It is 42.", [])),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}', ("", "", [("add", {"a": 1})])),
        ('[THINK]Add [TOOL_CALLS].[/THINK]Now.'
         '[TOOL_CALLS]add[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{"b": "[TOOL_CALLS]"}',
         ("Add [TOOL_CALLS].", "Now.", [("add", {"a": 1}), ("sub", {"b": "[TOOL_CALLS]"})])),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "sub", "arguments": {}}]',
         ("", "", [("add", {"a": 1}), ("sub", {})])),
        ('[TOOL_CALLS]add[ARGS]{"a": ', ("", '[TOOL_CALLS]add[ARGS]{"a": ', [])),
        ("[TOOL_CALLS]add", ("", "[TOOL_CALLS]add", [])),
        ("[TOOL_CALLS][1]", ("", "[TOOL_CALLS][1]", [])),
        ("", ("", "", [])),
    ],
)  # fmt: skip
def test_mistral(text: str, found: Said) -> None:
    assert read(Format.MISTRAL, text) == found


def test_a_call_that_is_cut_off_is_none() -> None:
    text = whole(Format.HARMONY, f'{ANALYSIS}Add.{NEXT}{TO_ADD}{{"a": ')
    assert text == '<think>\nAdd.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a":'
    assert read(Format.HARMONY, f"{TO_ADD}print(1)") == ("", '<tool_call>\n{"name": "add", "arguments": print(1)', [])


def test_which_template_is_of_which_format() -> None:
    assert of("{{- '<|start|>assistant<|channel|>final<|message|>' }}") is Format.HARMONY
    assert of("{{ '[TOOL_CALLS]' }}") is of("{{ '[THINK]' }}") is Format.MISTRAL
    assert of("{{ '<think>' }}<tool_call>") is of("") is Format.PLAIN
    assert reader(Format.PLAIN) is None
    assert whole(Format.PLAIN, "<|channel|>x") == "<|channel|>x"
    assert {b"<|channel|>", b"<|end|>"} <= tags(Format.HARMONY)
    assert {b"[THINK]", b"[ARGS]", b"<think>"} <= tags(Format.MISTRAL)
    assert tags(Format.PLAIN) == {b"<think>", b"</think>"}


def test_what_a_prompt_opens() -> None:
    assert opened(Format.HARMONY, "hi<|end|><|start|>assistant") == ""
    assert opened(Format.HARMONY, f"hi<|end|><|start|>assistant{FINAL}") == FINAL
    assert opened(Format.HARMONY, "no such thing") == ""
    assert opened(Format.MISTRAL, "[/INST][THINK]\n") == "[THINK]\n"
    assert opened(Format.MISTRAL, "[/INST]") == ""
    assert opened(Format.MISTRAL, "[/INST]<think>\n") == opened(Format.PLAIN, "[/INST]<think>\n") == "<think>\n"


WORDS = (" ", "\n", "a", "to=", "assistant", "analysis", "final", "{}", '{"a": 1}', "[", "<", "</think>", "<th", "|>")
HARMONY = st.lists(st.sampled_from((*harmony.MARKS, ANALYSIS, FINAL, TO_ADD, NEXT, *WORDS)))
MISTRAL = st.lists(st.sampled_from((*mistral.MARKS, '[{"name": "add"}]', "add[ARGS]{}", *WORDS)))


def in_pieces(format: Format, text: str, cuts: list[int]) -> str:
    found = reader(format)
    assert found is not None
    ends = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return "".join(found.feed(text[a:b]) for a, b in itertools.pairwise(ends)) + found.finish()


@given(HARMONY, st.lists(st.integers(0, 10_000)))
@example([ANALYSIS, "a", NEXT, FINAL, "a"], list(range(200)))
def test_harmony_in_any_pieces(words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    assert in_pieces(Format.HARMONY, text, cuts) == whole(Format.HARMONY, text)


@given(MISTRAL, st.lists(st.integers(0, 10_000)))
@example(["[THINK]", "a", "[/THINK]", "[TOOL_CALLS]", "add[ARGS]{}"], list(range(200)))
def test_mistral_in_any_pieces(words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    assert in_pieces(Format.MISTRAL, text, cuts) == whole(Format.MISTRAL, text)


@given(st.text())
def test_text_without_marks_is_left_as_it_is(text: str) -> None:
    if not any(mark[0] in text for mark in (*harmony.MARKS, *mistral.MARKS, "to=")):
        assert whole(Format.HARMONY, text) == whole(Format.MISTRAL, text) == text


def test_what_is_certain_is_told_at_once() -> None:
    found = harmony.Reader()
    pieces = [
        "<|channel|>",
        "analysis",
        "<|message|>",
        "So",
        " 42",
        "<|end|>",
        "<|start|>",
        "assistant",
        FINAL,
        "It",
        " is",
    ]
    assert [found.feed(p) for p in pieces] == [
        *("", "", "", "<think>\nSo", " 42", "", "", "", "", "\n</think>\n\nIt", " is")
    ]


def test_which_models_may_think() -> None:
    assert all(map(thinks, ("<think>", "x.split('</think>')", "[THINK]", "<|channel|>")))
    assert not any(map(thinks, ("", "[TOOL_CALLS]", "<tool_call>")))
