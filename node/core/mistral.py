"""Mistral's format, told in the form that everything knows (`node.core.formats`).

`[THINK]…[/THINK]` is a thought. Calls come last: each as `[TOOL_CALLS]NAME[ARGS]{…}` by newer models, also with
`[CALL_ID]…` in between, all as `[TOOL_CALLS][{"name": …, "arguments": …}, …]` by older ones
(mistral-common, tokens/tokenizers/instruct.py).
"""

from __future__ import annotations

import json
import re

from node.core import thoughts, tools

OPENS, CLOSES = "[THINK]", "[/THINK]"
CALLS, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
MARKS = (OPENS, CLOSES, CALLS, ID, ARGUMENTS)

_TAGS = {OPENS: thoughts.OPENS, CLOSES: thoughts.CLOSES}
_MARK = re.compile("|".join(map(re.escape, (OPENS, CLOSES, CALLS))))
_CALL = re.compile(r"\s*([^\s\[\]{}]+)\s*(?:\[CALL_ID\][^\[\]]*)?\[ARGS\]\s*(?=\{)")
_LIST = re.compile(r"\s*(?=[\[{])")


def opened(tail: str) -> str:
    """The end of a prompt from the tag on with which it opens a thought; empty if it opens none."""
    _, tag, rest = tail.rpartition(OPENS)
    return f"{tag}{rest}" if tag and not rest.strip() else ""


class Reader:
    """See the module."""

    def __init__(self) -> None:
        self._held = ""
        self._thinks = self._calls = False

    def feed(self, text: str) -> str:
        """What has become certain: of the calls nothing before the text ends."""
        self._held += text
        told: list[str] = []
        while not self._calls and (mark := _MARK.search(self._held)):
            if mark[0] == CALLS and not self._thinks:
                self._calls = True
                told.append(self._held[: mark.start()])
                self._held = self._held[mark.start() :]
            else:  # what it thinks of doing is no call
                told.append(self._held[: mark.start()] + _TAGS.get(mark[0], mark[0]))
                self._held = self._held[mark.end() :]
                self._thinks = mark[0] != CLOSES
        if not self._calls:
            sure = len(self._held) - max(thoughts.overlap(self._held, mark) for mark in (OPENS, CLOSES, CALLS))
            told.append(self._held[:sure])
            self._held = self._held[sure:]
        return "".join(told)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if not self._calls:
            return held
        found: list[str] = []
        at = 0
        while held.startswith(CALLS, at) and (said := _call(held, at + len(CALLS))):
            found += said[0]
            at = said[1]
        return "\n".join(found) + held[at:]


def _call(text: str, at: int) -> tuple[list[str], int] | None:
    """The call or calls after a mark, and where they end; None if there are none."""
    if named := _CALL.match(text, at):
        found, end = tools.json_at(text, named.end())
        calls = [tools.hermes(named[1], text[named.end() : end])] if isinstance(found, dict) else []
    elif begun := _LIST.match(text, at):
        found, end = tools.json_at(text, begun.end())
        calls = [_hermes(each) for each in (found if isinstance(found, list) else [found])]
    else:
        return None
    return (calls, end) if calls and all(calls) else None


def _hermes(said: object) -> str:
    """One of a list of calls; empty if it is none."""
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return ""
    arguments = said.get("arguments", {})
    return tools.hermes(said["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else ""
