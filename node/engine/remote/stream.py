"""What an OpenAI-compatible server streams back, as it comes: bytes -> events -> a candidate's text. Pure.

Server-sent events are read by their specification (html.spec.whatwg.org, 9.2.6), as far as it is used: `data:` lines,
an empty line ends an event, comments are skipped. Whatever a server sends is capped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from node.core import thoughts
from node.errors import BackendError
from node.types import FinishReason, TokenLogprob, ToolCall

MOST_EVENT = 4 << 20  # bytes of one event
MOST_TEXT = 8 << 20  # characters of one answer
MOST_CALLS = 64
END = "[DONE]"
_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


class Events:
    """Server-sent events out of bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of the events that a piece completes. Raises BackendError for one that is too large."""
        *lines, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        if len(self._rest) > MOST_EVENT:
            raise BackendError(f"the server sent an event of more than {MOST_EVENT} bytes")
        for line in lines:
            if not line:
                if self._data:
                    yield "\n".join(self._data)
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._size += len(line)
                if self._size > MOST_EVENT:
                    raise BackendError(f"the server sent an event of more than {MOST_EVENT} bytes")
                self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """One candidate as its events make it. `prompt_tokens` and `tokens` are the server's count once it has said it."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _counted: bool = False
    _thinks: bool = False

    @property
    def mean_logprob(self) -> float:
        """Of the tokens whose log probability came; 0 where the server gives none, as for all its candidates then."""
        return sum(t.logprob for t in self.logprobs) / len(self.logprobs) if self.logprobs else 0.0

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that the server read out of the answer."""
        return tuple(ToolCall(c.name, c.arguments or "{}", c.id) for _, c in sorted(self._calls.items()) if c.name)

    def add(self, data: str) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Take an event in: the text that it adds, and its tokens' log probabilities. Raises BackendError."""
        try:
            event = json.loads(data)
            if not isinstance(event, dict):
                raise ValueError
            if event.get("error"):
                raise BackendError(f"the server failed: {_words(event['error'])}")
            return self._take(event)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            raise BackendError(f"the server sent what is no event of this API: {data[:80]!r}") from None

    def _take(self, event: dict[str, Any]) -> tuple[str, tuple[TokenLogprob, ...]]:
        usage = event.get("usage") or {}
        if usage:
            self._counted = True
            self.tokens = int(usage.get("completion_tokens") or self.tokens)
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        choices = event.get("choices") or []
        if not choices:
            return "", ()
        choice = choices[0]
        delta = choice.get("delta") or {}
        piece = self._with_thought(delta, delta.get("content") or choice.get("text") or "")
        if not isinstance(piece, str) or len(self.text) + len(piece) > MOST_TEXT:
            raise BackendError(f"the server's answer is no text, or longer than {MOST_TEXT} characters")
        self.text += piece
        for call in delta.get("tool_calls") or ():
            self._add_call(call)
        logprobs = tuple(_logprobs(choice.get("logprobs")))
        self.logprobs += logprobs
        if not self._counted:
            self.tokens += len(logprobs) or (1 if piece else 0)  # most servers send a token an event
        if choice.get("finish_reason"):
            self.reason = _REASONS.get(str(choice["finish_reason"]), FinishReason.STOP)
        return piece, logprobs

    def _with_thought(self, delta: dict[str, Any], said: Any) -> Any:
        """A piece of text with what the server sets apart of it: as `reasoning_content`, or `reasoning` as Ollama and
        newer vLLM call it."""
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if not isinstance(said, str):
            return said
        if not isinstance(thought, str):
            raise TypeError
        before = after = ""
        if thought and not self.text:
            before, self._thinks = f"{thoughts.OPENS}\n", True
        if self._thinks and (said or delta.get("tool_calls")):
            after, self._thinks = f"\n{thoughts.CLOSES}\n\n", False
        return f"{before}{thought if before or self._thinks or after else ''}{after}{said}"

    def _add_call(self, said: dict[str, Any]) -> None:
        index = int(said.get("index") or 0)
        if not 0 <= index < MOST_CALLS:
            raise BackendError(f"the server asks for more than {MOST_CALLS} calls")
        call, function = self._calls.setdefault(index, _Call()), said.get("function") or {}
        call.id = call.id or str(said.get("id") or "")
        call.name = call.name or str(function.get("name") or "")
        call.arguments += str(function.get("arguments") or "")
        if len(call.arguments) > MOST_TEXT:
            raise BackendError(f"the server's call is longer than {MOST_TEXT} characters")


def _logprobs(said: Any) -> Iterator[TokenLogprob]:
    """Of a chat (`content`, a list) or of a completion (lists side by side, OpenAI's legacy form)."""
    if not said:
        return
    if said.get("content") is None:
        for token, logprob in zip(said.get("tokens") or (), said.get("token_logprobs") or (), strict=False):
            if logprob is not None:
                yield TokenLogprob(str(token), min(float(logprob), 0.0), str(token).encode(), -1)
        return
    for each in said["content"]:
        top = tuple(_token(t) for t in each.get("top_logprobs") or ())
        yield _token(each, top)


def _token(said: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    token = str(said["token"])
    data = bytes(said["bytes"]) if said.get("bytes") is not None else token.encode()
    return TokenLogprob(token, min(float(said["logprob"]), 0.0), data, int(said.get("id", -1)), top)


def _words(error: Any) -> str:
    """What an error object says, in one line."""
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:300]


def refusal(code: int, data: bytes) -> str:
    """What a response that is no stream says, in one line."""
    try:
        said = json.loads(data)
        return _words(said.get("error", said))
    except (ValueError, AttributeError, RecursionError):
        return " ".join(data.decode("utf-8", "replace").split())[:200] or f"status {code}"
