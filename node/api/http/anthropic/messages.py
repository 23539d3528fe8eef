"""POST /v1/messages, whole or as events, and /v1/messages/count_tokens."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, votes
from node.api.http.anthropic import asked as reading
from node.api.http.anthropic import say, schema
from node.api.http.asked import Asked
from node.api.http.deltas import Answered, Called, Ended, Said, Thought, reason, whole
from node.api.http.here import Here, read, request_id
from node.api.http.wait import Framing, Stream, Whole
from node.types import ToolCall

_MESSAGES = msgspec.json.Decoder(schema.MessagesRequest)
_COUNT = msgspec.json.Decoder(schema.CountRequest)
_FRAMING = Framing(b"text/event-stream; charset=utf-8", say.PING, say.failed, say.refused)
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_encode = msgspec.json.encode


class Messages:
    """The endpoints."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def create(self, request: Request) -> Response:
        """Answer a conversation. Raises ConclaveError for what can be seen to be wrong before it is answered."""
        body = await read(request, _MESSAGES)
        id = request_id(request)
        wanted = asked.chat(reading.chat(body), self._here.node, id)
        answer = _Answer(self._here, wanted)
        return Stream(answer.stream, id, b"", _FRAMING) if body.stream else Whole(answer.whole, id, say.refused)

    async def count(self, request: Request) -> Response:
        """How many tokens a conversation has, by this node's model. Raises ConclaveError."""
        body = await read(request, _COUNT)
        said = reading.conversation(body)

        async def work() -> bytes:
            wanted = asked.chat(said, self._here.node)
            return _encode({"input_tokens": await self._here.coordinator.length(wanted.request)})

        return Whole(work, refused=say.refused)


class _Answer:
    """One answer on its way: blocks of what was thought, what is said, and calls, in the order in which they come."""

    def __init__(self, here: Here, wanted: Asked) -> None:
        self._here = here
        self._asked = wanted
        self._blocks = 0
        self._open = ""  # type of the block that is being written

    async def whole(self) -> bytes:
        """The message as one object."""
        found, [said] = await whole(self._here.answer(self._asked))
        content: list[dict[str, Any]] = []
        if said.thought:
            content.append({"type": "thinking", "thinking": said.thought, "signature": ""})
        if said.text or not said.calls:
            content.append({"type": "text", "text": said.text})
        content += [_call(c) | {"input": json.loads(c.arguments or "{}")} for c in said.calls]
        return _encode(self._message(content) | _end(found) | {"usage": _usage(found)} | self._votes(found))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The message as events. What of the prompt was held is known, and said, in the end."""
        empty = {"input_tokens": await self._length(), "output_tokens": 0}
        begin = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": empty}
        async with contextlib.aclosing(self._here.answer(self._asked)) as pieces:
            async for piece in pieces:
                # Only now, so that what fails before there is an answer is an error of HTTP.
                if begin:
                    yield say.event("message_start", message=begin)
                    begin = {}
                if isinstance(piece, Thought):
                    yield self._write("thinking", piece.text)
                elif isinstance(piece, Said):
                    yield self._write("text", piece.text)
                elif isinstance(piece, Called):
                    started = self._begin("tool_use", _call(piece.call) | {"input": {}})
                    yield started + self._delta("input_json_delta", "partial_json", piece.call.arguments)
                elif isinstance(piece, Ended):
                    yield (self._write("text", "") if not self._blocks else b"") + self._end()
                elif isinstance(piece, Answered):
                    delta = _end(piece)
                    yield say.event("message_delta", delta=delta, usage=_usage(piece), **self._votes(piece))
                    yield say.event("message_stop")
                else:
                    yield say.event("conclave", conclave=votes.event(piece))

    async def _length(self) -> int:
        """Tokens of the prompt; 0 where another node's model reads it."""
        request = self._asked.request
        return 0 if request.model else await self._here.coordinator.length(request)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        id = f"msg_{secrets.token_hex(12)}"
        return {
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": content,
        }

    def _write(self, kind: str, text: str) -> bytes:
        """More of a block of this type."""
        more = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
        begun = self._begin(kind, {"type": kind} | more) if self._open != kind else b""
        return begun + self._delta(f"{kind}_delta", kind, text)

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        ended = self._end()
        self._open = kind
        self._blocks += 1
        return ended + say.event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, kind: str, field: str, text: str) -> bytes:
        return say.event("content_block_delta", index=self._blocks - 1, delta={"type": kind, field: text})

    def _end(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return say.event("content_block_stop", index=self._blocks - 1)

    def _votes(self, found: Answered) -> dict[str, Any]:
        is_told = self._asked.is_vote or self._asked.events
        return {"conclave": votes.outcome(found.result)} if is_told else {}


def _end(found: Answered) -> dict[str, Any]:
    [candidate] = found.choices
    why = reason(candidate)
    if why == "stop" and candidate.stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": candidate.stopped_by}
    return {"stop_reason": _REASONS.get(why, why), "stop_sequence": None}


def _usage(found: Answered) -> dict[str, int]:
    """Tokens, by Anthropic's count: those of the prompt that were held already are not in `input_tokens`."""
    u = found.result.usage
    return {
        "input_tokens": u.prompt - u.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": u.cached,
        "output_tokens": sum(c.tokens for c in found.choices),
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name}
