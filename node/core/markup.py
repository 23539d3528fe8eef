"""Calls whose arguments stand between tags of their own, as text: what is in a `<tool_call>` and is no JSON.

    <function=NAME><parameter=KEY>VALUE</parameter>…</function>        Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5
    NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…            GLM-4.5 and newer

Which type a value has is said by the tool's schema alone: 42 may be a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from node.types import Tool

MAX_ARGUMENTS = 256  # of one call
_FUNCTION = re.compile(r"<function=([^<>\s]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>(.*?)</parameter>\s*", re.DOTALL)
_FUNCTION_ENDS = re.compile(r"</function>")
_NAME = re.compile(r"([^<>{}\s]+)\s*(?=<arg_key>|</tool_call>)")
_ARGUMENT = re.compile(r"<arg_key>([^<>]*)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)
_NOTHING = re.compile("")
_WORDS = {"True": True, "False": False, "None": None}


def call(text: str, at: int) -> tuple[str, dict[str, str], int] | None:
    """The name of a call, its arguments as they are written, and where it ends; None if there is none here."""
    for name, argument, ends in ((_FUNCTION, _PARAMETER, _FUNCTION_ENDS), (_NAME, _ARGUMENT, _NOTHING)):
        begun = name.match(text, at)
        if begun is None:
            continue
        said: dict[str, str] = {}
        end = begun.end()
        while len(said) < MAX_ARGUMENTS and (found := argument.match(text, end)):
            said[found[1].strip()] = found[2]
            end = found.end()
        closed = ends.match(text, end)
        return (begun[1], said, closed.end()) if closed else None
    return None


def typed(said: dict[str, str], tool: Tool) -> dict[str, Any]:
    """The values of arguments, by the schema of their tool."""
    try:
        known = json.loads(tool.parameters)["properties"]
    except (ValueError, TypeError, KeyError, RecursionError):
        known = None
    schemas = known if isinstance(known, dict) else {}
    return {key: _value(value, schemas.get(key)) for key, value in said.items()}


def _value(text: str, schema: object) -> Any:
    """One value. A text is all that is there but for a line break at either end, which models write."""
    plain, word = text.removeprefix("\n").removesuffix("\n"), text.strip()
    types = set(_types(schema))
    try:
        found = _WORDS[word] if word in _WORDS else json.loads(word)
    except (ValueError, RecursionError):
        return plain
    if "string" in types:
        return None if found is None and "null" in types else plain
    return found if types or isinstance(found, dict | list) else plain


def _types(schema: object) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    said = schema.get("type")
    yield from (t for t in (said if isinstance(said, list) else [said]) if isinstance(t, str))
    if any(isinstance(value, str) for value in _list(schema.get("enum"))):
        yield "string"
    for key in ("anyOf", "oneOf"):
        others = (other.get("type") for other in _list(schema.get(key)) if isinstance(other, dict))
        yield from (t for t in others if isinstance(t, str))


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []
