"""Tool calls in Hermes form: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` in a model's text.

The form is that of NousResearch's Hermes function calling, which Qwen2.5 and many others were trained on.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

from node.types import Tool, ToolCall

MAX_CALLS = 32  # of one answer; what follows stays text
_OPEN = re.compile(r"<tool_call>\s*(?=\{)")
_CLOSE = re.compile(r"\s*</tool_call>")
_DECODER = json.JSONDecoder()


def parse(text: str, tools: tuple[Tool, ...]) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a text into what it says and the calls it asks for. Never raises.

    Only calls of tools that were offered count, with a JSON object for arguments; anything else stays text.
    """
    if not tools:
        return text, ()
    names = {t.name for t in tools}
    calls: list[ToolCall] = []
    rest: list[str] = []
    at = 0
    # Places that are no call count as well: JSON's errors count lines, so without end they would cost the square.
    for opened in itertools.islice(_OPEN.finditer(text), MAX_CALLS):
        if opened.start() < at:  # inside of an argument
            continue
        value, end = _value(text, opened.end())
        closed = _CLOSE.match(text, end)
        call = _call(value, names, len(calls)) if closed else None
        if closed and call:
            rest.append(text[at : opened.start()])
            at = closed.end()
            calls.append(call)
    return ("".join((*rest, text[at:])).strip() if calls else text), tuple(calls)


def accepted(calls: Sequence[ToolCall], tools: tuple[Tool, ...]) -> bool:
    """Whether calls that another node read are such as `parse` gives: of tools offered, with a JSON object each."""
    names = {t.name for t in tools}
    if len(calls) > MAX_CALLS:
        return False
    return all(c.name in names and isinstance(_value(c.arguments, 0)[0], dict) for c in calls)


def _value(text: str, start: int) -> tuple[object, int]:
    """The JSON value at a place, and where it ends; None and the same place if there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _call(value: object, names: set[str], index: int) -> ToolCall | None:
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
