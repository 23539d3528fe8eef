"""Calls whose arguments stand between tags: which are read, and of which types their values are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.tools import Splitter, parse
from node.types import Tool

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "ratio": {"type": ["number", "null"]},
        "all": {"type": "boolean"},
        "tags": {"anyOf": [{"type": "array"}, {"type": "null"}]},
        "kind": {"enum": ["1", "2"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TOOLS = (
    Tool("edit", "", json.dumps(SCHEMA)),
    Tool("stop"),
    Tool("odd", "", '{"properties": {"x": 1, "y": {"type": 2}}}'),
)
Write = Callable[[str, dict[str, str]], str]
QWEN = "<tool_call>\n<function=%s>\n%s</function>\n</tool_call>"
GLM = "<tool_call>%s\n%s</tool_call>"
VALUES: list[tuple[str, str, object]] = [
    ("path", "a.py", "a.py"),
    ("path", "42", "42"),
    ("path", "  two\n\nlines ", "  two\n\nlines "),
    ("path", "<b>&</b>", "<b>&</b>"),
    ("line", "42", 42),
    ("line", "many", "many"),
    ("ratio", "0.5", 0.5),
    ("ratio", "null", None),
    ("all", "true", True),
    ("all", "False", False),
    ("tags", '["a", 1]', ["a", 1]),
    ("tags", "None", None),
    ("kind", "1", "1"),
    ("note", "null", None),
    ("note", "true", "true"),
    ("unknown", "42", "42"),
    ("unknown", '{"a": 1}', {"a": 1}),
]


def qwen(name: str, said: dict[str, str]) -> str:
    return QWEN % (name, "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in said.items()))


def glm(name: str, said: dict[str, str]) -> str:
    return GLM % (name, "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in said.items()))


@pytest.mark.parametrize("write", [qwen, glm])
@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_values_have_the_types_of_the_schema(write: Write, key: str, text: str, value: object) -> None:
    said, [call] = parse(f"I edit.\n{write('edit', {'line': '7', key: text})}", TOOLS)
    assert (said, call.name, call.id) == ("I edit.", "edit", "call_0")
    assert json.loads(call.arguments) == {"line": 7, key: value}


@pytest.mark.parametrize("write", [qwen, glm])
def test_several_calls_and_calls_without_arguments(write: Write) -> None:
    text = "\n".join([write("stop", {}), write("edit", {"path": "</tool_call>"}), write("odd", {"x": "1", "y": "z"})])
    said, calls = parse(text, TOOLS)
    assert said == ""
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [
        ("stop", {}),
        ("edit", {"path": "</tool_call>"}),
        ("odd", {"x": "1", "y": "z"}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        qwen("other", {"a": "1"}),
        glm("other", {"a": "1"}),
        "<tool_call><function=edit><parameter=path>a</parameter></tool_call>",
        "<tool_call><function=edit><parameter=path>a</function></tool_call>",
        "<tool_call>edit<arg_key>path</arg_key></tool_call>",
        "<tool_call>edit it</tool_call>",
        "<tool_call>edit<arg_key>path</arg_key><arg_value>cut in",
        qwen("edit", {"path": "a"}).removesuffix("</tool_call>"),
    ],
)
def test_what_is_no_call_of_a_tool_offered_stays_text(text: str) -> None:
    assert parse(text, TOOLS) == (text, ())


WORDS = st.sampled_from(
    (
        *("<tool_call>", "</tool_call>", "<function=edit>", "</function>", "<parameter=line>", "</parameter>", "edit"),
        *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "\n", "<", "line", "1"),
        *(qwen("stop", {}), glm("edit", {"line": "1"})),
    )
)


@given(st.lists(WORDS, max_size=24).map("".join), st.lists(st.integers(0, 10_000)))
def test_a_text_in_pieces_splits_as_the_whole_does(text: str, cuts: list[int]) -> None:
    ends = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    splitter = Splitter(TOOLS)
    told = [splitter.feed(text[a:b]) for a, b in itertools.pairwise(ends)] + [splitter.finish()]
    assert [c for _, calls in told for c in calls] == list(parse(text, TOOLS)[1])
