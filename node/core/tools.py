"""Tool calls in a model's text: between tags, or a text that is nothing but the JSON of one call.

`<tool_call>{"name": …, "arguments": {…}}</tool_call>` is NousResearch's Hermes function calling, which Qwen2.5 and
many others were trained on; some write other tags between these (`node.core.markup`). `{"name": …, "parameters": {…}}`
alone is what Llama 3.1 writes, and what a schema can force.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence

from node.core import markup
from node.types import Tool, ToolCall

MAX_CALLS = 32  # of one answer; what follows stays text
_OPEN = re.compile(r"<tool_call>\s*")
_CLOSE = re.compile(r"\s*</tool_call>")
_OPENS, _CLOSES = "<tool_call>", "</tool_call>"
_BARE = {"type", "name", "arguments", "parameters"}
_DECODER = json.JSONDecoder()


def parse(text: str, tools: tuple[Tool, ...]) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a text into what it says and the calls it asks for. Never raises.

    Only calls of tools that were offered count, with a JSON object for arguments; anything else stays text.
    """
    if not tools:
        return text, ()
    rest, calls, at = _scan(text, tools)
    if not calls and (bare := _bare(text, {t.name for t in tools})):
        return "", (bare,)
    return (f"{rest}{text[at:]}".strip() if calls else text), calls


def _scan(text: str, tools: tuple[Tool, ...]) -> tuple[str, tuple[ToolCall, ...], int]:
    """The calls between tags, the text before and between them, and where the last of them ends."""
    names = {t.name: t for t in tools}
    calls: list[ToolCall] = []
    rest: list[str] = []
    at = 0
    # Places that are no call count as well: JSON's errors count lines, so without end they would cost the square.
    for opened in itertools.islice(_OPEN.finditer(text), MAX_CALLS):
        if opened.start() < at:  # inside of an argument
            continue
        value, end = _within(text, opened.end(), names)
        closed = _CLOSE.match(text, end)
        call = _call(value, names, len(calls)) if closed else None
        if closed and call:
            rest.append(text[at : opened.start()])
            at = closed.end()
            calls.append(call)
    return "".join(rest), tuple(calls), at


def _within(text: str, at: int, tools: dict[str, Tool]) -> tuple[object, int]:
    """What is between the tags of a call, as the JSON of one, and where it ends."""
    if text.startswith("{", at) or (found := markup.call(text, at)) is None:
        return json_at(text, at)
    name, said, end = found
    return ({"name": name, "arguments": markup.typed(said, tools[name])}, end) if name in tools else (None, at)


class Splitter:
    """Splits a text while it is written into what it says and the calls it asks for, as `parse` does at its end.

    What may still become a call is held back: from `<tool_call>` on, and a text that begins with a brace.
    """

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        self._tools = tools
        self._held = ""
        self._is_first = True
        self._tried = 0  # closing tags that were looked at
        self.calls = 0

    def feed(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What has become certain: text to show, and calls that are complete."""
        self._held += text
        if self._is_first:
            begin = self._held.lstrip()
            if not begin or begin[0] == "{":
                return "", ()
            self._is_first = False
        opened = self._held.find(_OPENS)
        if opened < 0:
            return self._show(len(self._held) - _undecided(self._held)), ()
        closing = self._held.count(_CLOSES)
        if closing <= self._tried:
            return self._show(len(self._held[:opened].rstrip())), ()
        said, calls, at = _scan(self._held, self._tools)
        self._held = self._held[at:]
        self._tried = self._held.count(_CLOSES)  # of no call, or inside one that is not complete
        return said.strip(), self._numbered(calls)

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if self._is_first:
            said, calls = parse(held, self._tools)
        else:
            rest, calls, at = _scan(held, self._tools)
            said = rest + held[at:]
        return (said.strip() if self.calls or calls else said), self._numbered(calls)

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _numbered(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        first = self.calls
        self.calls += len(calls)
        return tuple(ToolCall(c.name, c.arguments, f"call_{first + i}") for i, c in enumerate(calls))


def _undecided(text: str) -> int:
    """Length of an ending that may be the beginning of a call, with the white space before it."""
    begun = next((n for n in range(min(len(_OPENS), len(text)), 0, -1) if _OPENS.startswith(text[-n:])), 0)
    rest = text[: len(text) - begun]
    return begun + len(rest) - len(rest.rstrip())


def _bare(text: str, names: set[str]) -> ToolCall | None:
    """A text that is one call and nothing else."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    value, end = json_at(text, 0)
    if end != len(text) or not isinstance(value, dict) or not value.keys() <= _BARE:
        return None
    if "parameters" in value and "arguments" not in value:
        value = {"name": value.get("name"), "arguments": value["parameters"]}
    elif "arguments" not in value:
        return None
    return _call(value, names, 0)


def accepted(calls: Sequence[ToolCall], tools: tuple[Tool, ...]) -> bool:
    """Whether calls that another node read are such as `parse` gives: of tools offered, with a JSON object each."""
    names = {t.name for t in tools}
    if len(calls) > MAX_CALLS:
        return False
    return all(c.name in names and isinstance(json_at(c.arguments, 0)[0], dict) for c in calls)


def hermes(name: str, arguments: str) -> str:
    """A call in Hermes form. One whose arguments are no JSON object, such as half of one, is not closed and so none."""
    said = arguments.strip()
    found, end = json_at(said, 0)
    begun = f'{_OPENS}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {said}'
    return f"{begun}}}\n{_CLOSES}" if isinstance(found, dict) and end == len(said) else begun


def json_at(text: str, start: int) -> tuple[object, int]:
    """The JSON value at a place, and where it ends; None and the same place if there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _call(value: object, names: Collection[str], index: int) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", {})
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        text = json.dumps(arguments)
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, text, f"call_{index}")
