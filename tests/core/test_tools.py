"""Tool calls in a model's text: read where they are calls of what was offered, left as text everywhere else."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.tools import MAX_CALLS, Splitter, accepted, parse
from node.types import Tool, ToolCall

TOOLS = (Tool("add"), Tool("weather", "…", '{"type": "object"}'))


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_calls_are_taken_out_of_the_text() -> None:
    one = call('{"name": "add", "arguments": {"a": 1, "b": 2}}')
    two = call('{"name": "weather", "arguments": {}}')
    text, calls = parse(f"Let me see. {one} and {two}", TOOLS)
    assert text == "Let me see.  and"
    assert calls == (ToolCall("add", '{"a": 1, "b": 2}', "call_0"), ToolCall("weather", "{}", "call_1"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"a": {"b": {"c": [{"d": 1}, {}]}}},
        {"text": "braces } in { a text }}"},
        {"text": "a}</tool_call>"},
        {"text": 'even <tool_call>{"name": "add", "arguments": {}}</tool_call> as a text'},
        {"text": '\n\t"quoted" \\ and ü 漢'},
    ],
)
def test_arguments_may_hold_anything(arguments: dict[str, object]) -> None:
    text, calls = parse(call(json.dumps({"name": "add", "arguments": arguments})), TOOLS)
    assert text == ""
    assert [json.loads(c.arguments) for c in calls] == [arguments]


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "rm", "arguments": {}}',
        '{"name": ["add"], "arguments": {}}',
        '{"name": {"add": 1}, "arguments": {}}',
        '{"name": "add", "arguments": "a=1"}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1e999}}',
        '{"name": "add", "arguments": {"a": 1}',
        '{"name": "add", "arguments": {}} trailing',
        '{"a":' * 100_000,
        '["add"]',
        "",
    ],
    ids=range(11),
)
def test_what_is_no_call_of_a_tool_offered_stays_text(body: str) -> None:
    assert parse(call(body), TOOLS) == (call(body), ())


def test_without_tools_nothing_is_a_call() -> None:
    text = call('{"name": "add", "arguments": {}}')
    assert parse(text, ()) == (text, ())


def test_half_a_surrogate_pair_can_be_sent() -> None:
    _, calls = parse(call(r'{"name": "add", "arguments": {"a": "\ud800"}}'), TOOLS)
    assert calls[0].arguments.encode()
    assert json.loads(calls[0].arguments) == {"a": "\ud800"}


def test_calls_are_limited() -> None:
    one = call('{"name": "add", "arguments": {}}')
    text, calls = parse(one * (MAX_CALLS + 5), TOOLS)
    assert len(calls) == MAX_CALLS
    assert text.count("<tool_call>") == 5


@pytest.mark.parametrize("piece", ["<tool_call>{", '<tool_call>{"', "<tool_call>" + " " * 50, '<tool_call>{"a":"\\"'])
def test_a_hostile_text_takes_linear_time(piece: str) -> None:
    text = piece * ((1 << 20) // len(piece))
    started = time.process_time()
    assert parse(text, TOOLS) == (text, ())
    assert time.process_time() - started < 1


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "add", "arguments": {', '"a": 1', '"name": []', "}", "{", "\n", "\\ud800"]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=20).map("".join))
def test_parse_is_total(text: str) -> None:
    rest, calls = parse(text, TOOLS)
    assert len(rest) <= len(text)
    assert accepted(calls, TOOLS)
    assert calls or rest == text


VALUES = st.integers() | st.text(max_size=9) | st.lists(PIECES, max_size=3)
ARGUMENTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["add", "weather"]), ARGUMENTS), max_size=4))
def test_what_is_written_is_read(wanted: list[tuple[str, dict[str, object]]]) -> None:
    text = "and".join(call(json.dumps({"name": n, "arguments": a})) for n, a in wanted)
    _, calls = parse(text, TOOLS)
    assert [(c.name, json.loads(c.arguments)) for c in calls] == wanted
    assert len({c.id for c in calls}) == len(wanted)


def test_calls_of_another_node_are_checked() -> None:
    assert accepted((), ())
    assert accepted((ToolCall("add", '{"a": 1}'),), TOOLS)
    assert not accepted((ToolCall("add", "{}"),), ())
    assert not accepted((ToolCall("rm", "{}"),), TOOLS)
    assert not accepted((ToolCall("add", "[]"),), TOOLS)
    assert not accepted((ToolCall("add", '{"a":'),), TOOLS)
    assert not accepted((ToolCall("add", "{}"),) * (MAX_CALLS + 1), TOOLS)


# ---- while it is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', ToolCall("add", '{"a": 1}', "call_0")),
        ('\n {"name": "add", "parameters": {"a": 1}} ', ToolCall("add", '{"a": 1}', "call_0")),
        ('{"type": "function", "name": "add", "parameters": {}}', ToolCall("add", "{}", "call_0")),
        ('{"name": "add"}', None),
        ('{"name": "rm", "arguments": {}}', None),
        ('{"name": "add", "arguments": {}, "why": 1}', None),
        ('{"name": "add", "arguments": {}} and more', None),
        ('say {"name": "add", "arguments": {}}', None),
    ],
)
def test_a_text_that_is_one_call_and_nothing_else(text: str, found: ToolCall | None) -> None:
    said, calls = parse(text, TOOLS)
    assert calls == ((found,) if found else ())
    assert said == ("" if found else text)


PIECES = st.sampled_from(
    [
        call('{"name": "add", "arguments": {"a": 1}}'),
        call('{"name": "add", "arguments": {"t": "</tool_call>"}}'),
        call('{"name": "rm", "arguments": {}}'),
        '{"name": "add", "arguments": {}}',
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "hello ",
        " <",
        "\n",
        "x < y",
        "{",
    ]
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=6).map("".join), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_a_text_in_pieces_splits_as_the_whole_does(text: str, sizes: list[int]) -> None:
    splitter, at, said, calls = Splitter(TOOLS), 0, "", []
    while at < len(text):
        size = sizes[at % len(sizes)]
        shown, found = splitter.feed(text[at : at + size])
        said, calls, at = said + shown, [*calls, *found], at + size
    shown, found = splitter.finish()
    said, calls = said + shown, [*calls, *found]
    whole, expected = parse(text, TOOLS)
    assert calls == list(expected)
    assert "".join(said.split()) == "".join(whole.split()), "but for white space at a call"
    if not expected:
        assert said == text


def test_what_is_no_call_is_shown_as_it_is_written() -> None:
    splitter = Splitter(TOOLS)
    shown = [splitter.feed(piece)[0] for piece in ("Sure", ", a <", " b", " ", "<tool", "box>", "!")]
    assert shown == ["Sure", ", a", " < b", "", "", " <toolbox>", "!"]
