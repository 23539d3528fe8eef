"""POST /v1/chat/completions. What a model thinks is `reasoning_content`, as llama-server and vLLM call it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, schema, votes
from node.api.http.asked import Asked
from node.api.http.deltas import Answered, Called, Ended, Said, Thought, reason, whole
from node.api.http.here import Here, now, read, request_id
from node.api.http.wait import Stream, Whole
from node.types import Candidate, GenerateResult, TokenLogprob, ToolCall

_DECODER = msgspec.json.Decoder(schema.ChatRequest)
_encode = msgspec.json.encode


class Chat:
    """The endpoint."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def __call__(self, request: Request) -> Response:
        """Answer a conversation. Raises ConclaveError for what can be seen to be wrong before it is answered."""
        body = await read(request, _DECODER)
        id = request_id(request)
        wanted = asked.chat(body, self._here.node, id)
        completion = _Completion(self._here, wanted, body.prompt_cache_key)
        return Stream(completion.stream, id) if body.stream else Whole(completion.whole, id)


class _Completion:
    """One completion on its way."""

    def __init__(self, here: Here, wanted: Asked, cache_key: str | None) -> None:
        self._here = here
        self._asked = wanted
        self._cache_key = cache_key
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = now()

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._asked.model,
            "system_fingerprint": self._here.fingerprint,
        }

    async def whole(self) -> bytes:
        """The completion as one object."""
        found, spoken = await whole(self._here.answer(self._asked, self._cache_key))
        choices = []
        for index, (candidate, said) in enumerate(zip(found.choices, spoken, strict=True)):
            message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
            if said.thought:
                message["reasoning_content"] = said.thought
            if said.calls:
                message["tool_calls"] = [_call(c) for c in said.calls]
                message["content"] = said.text or None
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": _logprobs([logprob(t) for t in said.logprobs]),
                    "finish_reason": reason(candidate),
                }
            )
        used = usage(found, await self._here.reasoning(found.choices))
        body = self._head("chat.completion") | {"choices": choices, "usage": used}
        return _encode(body | self._votes(found.result))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The completion as events."""
        head = _encode(self._head("chat.completion.chunk"))[:-1]
        # What is the same in every piece of text is made once: a token costs one encoding of its text.
        between = head + b',"choices":[{"index":%d,"delta":{"content":'
        after = b'},"logprobs":null,"finish_reason":null}]}\n\n'
        befores = [b"data: " + between % i for i in range(self._asked.choices)]
        begun = [False] * self._asked.choices

        def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
            rest = _encode({"choices": choices} | more)
            return b"data: " + head + b"," + rest[1:] + b"\n\n"

        def delta(index: int, said: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
            return chunk([{"index": index, "delta": said, "logprobs": None, "finish_reason": finish}], **more)

        def begin(index: int) -> bytes:
            if begun[index]:
                return b""
            begun[index] = True
            return delta(index, {"role": "assistant", "content": None})

        ends: list[tuple[int, Candidate]] = []
        async with contextlib.aclosing(self._here.answer(self._asked, self._cache_key)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Thought) or (isinstance(piece, Said) and piece.logprobs):
                    content = _logprobs([logprob(t) for t in piece.logprobs])
                    kind = "content" if isinstance(piece, Said) else "reasoning_content"
                    choice = {"index": piece.choice, "delta": {kind: piece.text}}
                    yield begin(piece.choice) + chunk([choice | {"logprobs": content, "finish_reason": None}])
                elif isinstance(piece, Said):
                    yield begin(piece.choice) + befores[piece.choice] + _encode(piece.text) + after
                elif isinstance(piece, Called):
                    call = {"index": piece.number} | _call(piece.call)
                    arguments = call["function"].pop("arguments")
                    named = call | {"function": call["function"] | {"arguments": ""}}
                    yield begin(piece.choice) + delta(piece.choice, {"tool_calls": [named]})
                    rest = {"index": piece.number, "function": {"arguments": arguments}}
                    yield delta(piece.choice, {"tool_calls": [rest]})
                elif isinstance(piece, Ended):
                    ends.append((piece.choice, piece.candidate))
                    if self._asked.choices > 1:
                        yield begin(piece.choice) + delta(piece.choice, {}, reason(piece.candidate))
                elif isinstance(piece, Answered):
                    extra = self._votes(piece.result)
                    if self._asked.choices == 1:
                        # The vote comes with the last piece of the answer, where clients still look.
                        for index, candidate in ends:
                            yield begin(index) + delta(index, {}, reason(candidate), **extra)
                    elif extra:
                        yield chunk([], **extra)
                    if self._asked.include_usage:
                        yield chunk([], usage=usage(piece, await self._here.reasoning(piece.choices)))
                else:
                    yield chunk([], conclave=votes.event(piece))

    def _votes(self, result: GenerateResult) -> dict[str, Any]:
        is_told = self._asked.is_vote or self._asked.events
        return {"conclave": votes.outcome(result)} if is_told else {}


def usage(found: Answered, reasoning: int) -> dict[str, Any]:
    """Tokens of the prompt, of which some were held already, and of the choices, of which so many were thoughts."""
    u = found.result.usage
    written = sum(c.tokens for c in found.choices)
    return {
        "prompt_tokens": u.prompt,
        "completion_tokens": written,
        "total_tokens": u.prompt + written,
        "prompt_tokens_details": {"cached_tokens": u.cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def logprob(t: TokenLogprob) -> dict[str, Any]:
    """A token's log probability, with those of the most probable tokens in its place."""
    return _token(t) | {"top_logprobs": [_token(other) for other in t.top]}


def _token(t: TokenLogprob) -> dict[str, Any]:
    return {"token": t.token, "logprob": t.logprob, "bytes": list(t.bytes)}


def _logprobs(content: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return {"content": content, "refusal": None} if content else None


def _call(call: ToolCall) -> dict[str, Any]:
    # A conversation may hold many calls: numbers would repeat.
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
