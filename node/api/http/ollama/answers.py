"""POST /api/chat and /api/generate: one JSON object a line as the answer is written, or one for all of it."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, chat, votes
from node.api.http import schema as openai
from node.api.http.asked import Asked
from node.api.http.deltas import Answered, Called, Ended, Said, Thought, reason, whole
from node.api.http.here import Here, read, request_id
from node.api.http.ollama import asked as reading
from node.api.http.ollama import say, schema
from node.api.http.wait import Framing, Stream, Whole
from node.types import TokenLogprob, ToolCall

_CHAT = msgspec.json.Decoder(schema.ChatRequest)
_GENERATE = msgspec.json.Decoder(schema.GenerateRequest)
_encode = msgspec.json.encode


class Answers:
    """The endpoints."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def chat(self, request: Request) -> Response:
        """Answer a conversation. Raises ConclaveError for what can be seen to be wrong before it is answered."""
        body = await read(request, _CHAT)
        if not body.messages:
            return _loaded(self._here, body.model, {"message": {"role": "assistant", "content": ""}}, body.keep_alive)
        id = request_id(request)
        wanted = asked.chat(reading.chat(body), self._here.node, id)
        return _answer(_Answer(self._here, wanted, body.model, is_chat=True), body.stream, id)

    async def generate(self, request: Request) -> Response:
        """Answer a prompt. Raises ConclaveError for what can be seen to be wrong before it is answered."""
        body = await read(request, _GENERATE)
        if not body.prompt:
            return _loaded(self._here, body.model, {"response": ""}, body.keep_alive)
        id = request_id(request)
        said = reading.generate(body)
        if isinstance(said, openai.CompletionRequest):
            wanted = asked.completion(said, body.prompt, self._here.node, id)
        else:
            wanted = asked.chat(said, self._here.node, id)
        return _answer(_Answer(self._here, wanted, body.model, is_chat=False), body.stream, id)


def _loaded(here: Here, model: str, said: dict[str, Any], keep_alive: Any) -> Response:
    """What clients ask before they ask: whether the model is there. It stays loaded, whatever they wish."""
    here.mode(reading.model(model))
    why = "unload" if keep_alive in (0, "0", "0s") else "load"
    body = {"model": model, "created_at": say.now(), **said, "done": True, "done_reason": why}
    return Response(_encode(body), media_type="application/json")


def _answer(answer: _Answer, stream: bool | None, id: str) -> Response:
    if stream is False:
        return Whole(answer.whole, id, say.refused)
    idle = say.line(answer.piece("") | {"done": False})
    return Stream(answer.stream, id, b"", Framing(say.MEDIA, idle, say.failed, say.refused))


class _Answer:
    """One answer on its way."""

    def __init__(self, here: Here, wanted: Asked, model: str, *, is_chat: bool) -> None:
        self._here = here
        self._asked = wanted
        self._model = model
        self._is_chat = is_chat

    def piece(self, text: str, thought: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """A piece of the answer, or all of it."""
        head = {"model": self._model, "created_at": say.now()}
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        if not self._is_chat:
            return head | {"response": text} | more
        message: dict[str, Any] = {"role": "assistant", "content": text}
        return head | {"message": message | more | ({"tool_calls": calls} if calls else {})}

    async def whole(self) -> bytes:
        """The answer as one object."""
        found, [said] = await whole(self._here.answer(self._asked))
        calls = [_call(i, c) for i, c in enumerate(said.calls)]
        return _encode(self.piece(said.text, said.thought, calls) | _likely(said.logprobs) | self._end(found))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as lines."""
        async with contextlib.aclosing(self._here.answer(self._asked)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Said | Thought):
                    told = (piece.text, "") if isinstance(piece, Said) else ("", piece.text)
                    yield say.line(self.piece(*told) | _likely(piece.logprobs) | {"done": False})
                elif isinstance(piece, Called):
                    yield say.line(self.piece("", "", [_call(piece.number, piece.call)]) | {"done": False})
                elif isinstance(piece, Answered):
                    yield say.line(self.piece("") | self._end(piece))
                elif not isinstance(piece, Ended):
                    yield say.line(self.piece("") | {"done": False, "conclave": votes.event(piece)})

    def _end(self, found: Answered) -> dict[str, Any]:
        t, u = found.result.timings, found.result.usage
        why = reason(found.choices[0]) if found.choices else "stop"
        end = {
            "done": True,
            "done_reason": "length" if why == "length" else "stop",
            "total_duration": _ns(t.total_ms),
            "load_duration": 0,
            "prompt_eval_count": u.prompt,
            "prompt_eval_duration": _ns(t.prefill_ms),
            "eval_count": sum(c.tokens for c in found.choices),
            "eval_duration": _ns(max(t.total_ms - t.queue_ms - t.prefill_ms, 0)),
        }
        is_told = self._asked.is_vote or self._asked.events
        return end | ({"conclave": votes.outcome(found.result)} if is_told else {})


def _ns(ms: float) -> int:
    return int(ms * 1e6)


def _call(number: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": number, "name": call.name, "arguments": json.loads(call.arguments or "{}")}
    return {"id": f"call_{secrets.token_hex(12)}", "function": function}


def _likely(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": [chat.logprob(t) for t in tokens]} if tokens else {}
