"""Harmony, OpenAI's format for gpt-oss, told in the form that everything knows (`node.core.formats`).

An answer is messages in channels, `<|start|>assistant<|channel|>NAME<|message|>…<|end|>`; the prompt ends within the
header of the first. In `analysis` the model thinks; `final`, and `commentary` to nobody, are for the user; a message
`to=functions.NAME`, in any channel, is a call. `<|return|>` or `<|call|>` ends the answer
(https://developers.openai.com/cookbook/articles/openai-harmony).
"""

from __future__ import annotations

import re

from node.core import thoughts, tools

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
ROLE = f"{START}assistant"
FINAL = f"{CHANNEL}final{MESSAGE}"

_MOST_HEADER = 512  # characters; what is longer is the text of a model that has lost its format
_BEGINS = (START, CHANNEL, CONSTRAIN, MESSAGE, "to=")  # of a header
_ENDS = (END, RETURN, CALL, START, CHANNEL)  # of a message: models leave out the end before the next
_END = re.compile("|".join(map(re.escape, _ENDS)))
_TO = re.compile(r"\bto=([^\s<]+)")
_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_NOBODY = frozenset({"assistant", "user", "all"})
_BETWEEN = "\n\n"


def opened(tail: str) -> str:
    """What a prompt's end says of the message that the model goes on with."""
    _, role, rest = tail.rpartition(ROLE)
    return rest if role else ""


class Reader:
    """See the module. What a model thinks after it has said something is left out: a text has its thought first."""

    def __init__(self) -> None:
        self._held = ""
        self._kind = ""  # of the message that is read: thought, text or call; empty within a header
        self._name = ""  # of the tool that is called
        self._is_new = False  # nothing of the message was told yet
        self._thinks = self._has_said = False

    def feed(self, text: str) -> str:
        """What has become certain."""
        self._held += text
        told: list[str] = []
        while self._read(told):
            pass
        return "".join(told)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if self._kind:
            return self._told(held)
        if held.lstrip().startswith(_BEGINS):
            return ""  # a header that is not complete
        self._kind, self._is_new = "text", True
        return self._told(held)

    def _read(self, told: list[str]) -> bool:
        """Go on by a header, or by as much of a message as is there. False: the rest must wait."""
        if not self._kind:
            return self._header()
        end = _END.search(self._held)
        if end is not None:
            told.append(self._told(self._held[: end.start()]))
            self._held = self._held[end.start() if end[0] in (START, CHANNEL) else end.end() :]
            self._kind = ""
            return True
        if self._kind != "call":
            sure = len(self._held) - max(thoughts.overlap(self._held, mark) for mark in (*_ENDS, thoughts.CLOSES))
            told.append(self._told(self._held[:sure]))
            self._held = self._held[sure:]
        return False

    def _header(self) -> bool:
        begun = self._held.lstrip()
        end = begun.find(MESSAGE)
        if not begun.startswith(_BEGINS):
            if any(mark.startswith(begun) for mark in _BEGINS):
                return False
            end = -1  # no header at all, as where a grammar is held to
        elif end < 0 and len(begun) < _MOST_HEADER:
            return False
        self._kind, self._is_new = "text", True
        if end >= 0:
            header, self._held = begun[:end], begun[end + len(MESSAGE) :]
            to, channel = _TO.search(header), _NAME.search(header)
            if to and to[1] not in _NOBODY:
                self._kind, self._name = "call", to[1].removeprefix("functions.")
            elif channel and channel[1] == "analysis":
                self._kind = "thought"
        return True

    def _told(self, text: str) -> str:
        """More of a message, or all of it if it is a call."""
        if not text or (self._kind == "thought" and self._has_said):
            return ""
        is_new, self._is_new = self._is_new, False
        if self._kind == "thought":
            begun, self._thinks = self._thinks, True
            before = f"{thoughts.OPENS}\n" if not begun else _BETWEEN if is_new else ""
            return before + text.replace(thoughts.CLOSES, thoughts.CLOSES.replace("/", "/ "))
        before = _BETWEEN if is_new and self._has_said else ""
        if self._thinks:
            before, self._thinks = f"\n{thoughts.CLOSES}{_BETWEEN}", False
        self._has_said = True
        return before + (tools.hermes(self._name, text) if self._kind == "call" else text)
