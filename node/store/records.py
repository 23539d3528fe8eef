"""An entry of a log as a line of JSON, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from node.core.log import MAX_MS, NOTHING, Entry, Reply
from node.types import Message, ToolCall, Version

FORMAT = 1
_REPLY = frozenset(Reply.__dataclass_fields__)


def head(topic: str) -> bytes:
    """The first line of a topic's file."""
    return _line({"conclave_log": FORMAT, "topic": topic})


def topic(line: bytes) -> str | None:
    """The topic that a first line names; None if it is no first line of ours."""
    found = _parse(line)
    if found is None or found.get("conclave_log") != FORMAT or not isinstance(found.get("topic"), str):
        return None
    return str(found["topic"])


def line(entry: Entry) -> bytes:
    """The line of an entry."""
    out: dict[str, Any] = {"version": _version(entry.version)}
    if entry.parent != NOTHING:
        out["parent"] = _version(entry.parent)
    if entry.forgotten:
        return _line(out | {"forgotten": True})
    out |= {"messages": [_message(m) for m in entry.messages], "tokens": entry.tokens}
    if entry.anew:
        out["anew"] = True
    if entry.made_ms:
        out["made_ms"] = entry.made_ms
    if entry.request_id:
        out |= {"request_id": entry.request_id, "reply": asdict(entry.reply)}
    return _line(out)


def entry(line: bytes) -> Entry | None:
    """The entry of a line; None if it is none."""
    found = _parse(line)
    if found is None:
        return None
    try:
        return Entry(
            version=_read_version(found["version"]),
            parent=_read_version(found["parent"]) if "parent" in found else NOTHING,
            messages=tuple(_read_message(m) for m in found.get("messages", [])),
            anew=bool(found.get("anew", False)),
            tokens=int(found.get("tokens", 0)),
            request_id=str(found.get("request_id", "")),
            forgotten=bool(found.get("forgotten", False)),
            reply=Reply(**{k: v for k, v in found.get("reply", {}).items() if k in _REPLY}),
            made_ms=min(max(int(found.get("made_ms", 0)), 0), MAX_MS),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _line(value: dict[str, Any]) -> bytes:
    # Half of a surrogate pair, which JSON in an answer may hold, is no UTF-8: such texts are escaped.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _version(v: Version) -> list[int | str]:
    return [v.epoch, v.turn, v.node_id]


def _read_version(value: Any) -> Version:
    epoch, turn, node = value
    if type(epoch) is not int or type(turn) is not int or type(node) is not str or epoch < 0 or turn < 0:
        raise ValueError
    return Version(epoch, turn, node)


def _message(m: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": m.role, "content": m.content}
    if m.tool_calls:
        out["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in m.tool_calls]
    if m.tool_call_id:
        out["tool_call_id"] = m.tool_call_id
    return out


def _read_message(value: Any) -> Message:
    calls = tuple(ToolCall(str(c["name"]), str(c["arguments"]), str(c["id"])) for c in value.get("tool_calls", []))
    return Message(str(value["role"]), str(value["content"]), calls, str(value.get("tool_call_id", "")))
