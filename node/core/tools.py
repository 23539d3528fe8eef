"""Tool calls in Hermes form: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` in a model's text.

The form is that of NousResearch's Hermes function calling, which Qwen2.5 and many others were trained on.
"""

from __future__ import annotations

import json
import re

from node.types import Tool, ToolCall

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def parse(text: str, tools: tuple[Tool, ...]) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a text into what it says and the calls it asks for.

    Only calls of tools that were offered count, with a JSON object for arguments; anything else stays text.
    """
    names = {t.name for t in tools}
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        call = _call(match[1], names, len(calls))
        if call is None:
            return match[0]
        calls.append(call)
        return ""

    if not tools:
        return text, ()
    rest = _CALL.sub(take, text)
    return (rest.strip() if calls else text), tuple(calls)


def _call(body: str, names: set[str], index: int) -> ToolCall | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False), id=f"call_{index}")
