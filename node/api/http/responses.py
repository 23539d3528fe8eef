"""POST /v1/responses: text and function tools, by the events of OpenAI's Responses API.

`previous_response_id` goes on with a response that is remembered here (`node.api.http.remembered`); with `store: false`
it is not.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.api.http import asked, schema, votes
from node.api.http.asked import Asked
from node.api.http.deltas import Answered, Called, Ended, Said, Thought, whole
from node.api.http.here import Here, now, read, request_id
from node.api.http.remembered import Kept, Remembered
from node.api.http.wait import Stream, Whole
from node.types import ToolCall
from node.v1 import types_pb2

_DECODER = msgspec.json.Decoder(schema.ResponsesRequest)
_encode = msgspec.json.encode


class Responses:
    """The endpoint."""

    def __init__(self, here: Here, remembered: Remembered) -> None:
        self._here = here
        self._remembered = remembered

    async def __call__(self, request: Request) -> Response:
        """Answer. Raises ConclaveError."""
        body = await read(request, _DECODER)
        before: Sequence[types_pb2.Message] = ()
        if body.previous_response_id:
            before = self._remembered.get(body.previous_response_id).messages
        id = request_id(request)
        wanted, said = asked.responses(body, before, self._here.node, id)
        made = _Response(self._here, body, wanted, said, self._remembered)
        return Stream(made.stream, id, end=b"") if body.stream else Whole(made.whole, id)


class _Response:
    """One response on its way: its output items, what was thought first, a message if there is text, then calls."""

    def __init__(
        self,
        here: Here,
        body: schema.ResponsesRequest,
        wanted: Asked,
        said: list[types_pb2.Message],
        remembered: Remembered,
    ) -> None:
        self._here = here
        self._body = body
        self._asked = wanted
        self._said = said
        self._remembered = remembered
        self._id = f"resp_{secrets.token_hex(16)}"
        self._message_id = f"msg_{secrets.token_hex(16)}"
        self._thought_id = f"rs_{secrets.token_hex(16)}"
        self._first = 0  # index of the first item that is no thought
        self._created = now()
        self._events = 0

    async def whole(self) -> bytes:
        """The response as one object."""
        found, [said] = await whole(self._here.answer(self._asked, self._body.prompt_cache_key))
        calls = [_call(c) for c in said.calls]
        output = self._output(said.text, said.thought, calls)
        return _encode(self._finished(found, output, await self._here.reasoning(found.choices)))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as events."""
        text = thought = ""
        calls: list[dict[str, Any]] = []
        has_message = is_thinking = False
        yield self._event("response.created", response=self._object("in_progress", []))
        yield self._event("response.in_progress", response=self._object("in_progress", []))
        async with contextlib.aclosing(self._here.answer(self._asked, self._body.prompt_cache_key)) as pieces:
            async for piece in pieces:
                if is_thinking and isinstance(piece, Said | Called | Ended):
                    is_thinking = False
                    yield self._thought_ends(thought)
                if isinstance(piece, Thought):
                    if not is_thinking:
                        is_thinking, self._first = True, 1
                        yield self._event(
                            "response.output_item.added", output_index=0, item=self._thought("", "in_progress")
                        )
                    thought += piece.text
                    yield self._thought_event("delta", delta=piece.text)
                elif isinstance(piece, Said):
                    if not has_message:
                        has_message = True
                        yield self._message_begins()
                    text += piece.text
                    yield self._text_event("response.output_text.delta", delta=piece.text, logprobs=[])
                elif isinstance(piece, Called):
                    call = _call(piece.call)
                    yield self._calls(call, self._first + int(has_message) + len(calls))
                    calls.append(call)
                elif isinstance(piece, Ended):
                    if not text and not calls:
                        has_message = True
                        yield self._message_begins()
                    if has_message:
                        yield self._message_ends(text)
                elif isinstance(piece, Answered):
                    reasoning = await self._here.reasoning(piece.choices)
                    body = self._finished(piece, self._output(text, thought, calls), reasoning)
                    yield self._event(f"response.{body['status']}", response=body)
                else:
                    yield self._event("conclave", conclave=votes.event(piece))

    # ---- objects ----------------------------------------------------------------------------------------------------

    def _output(self, text: str, thought: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        before = [self._thought(thought, "completed")] if thought else []
        return [*before, *([self._message(text, "completed")] if text or not calls else []), *calls]

    def _thought(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}] if text else []
        return {"type": "reasoning", "id": self._thought_id, "status": status, "summary": [], "content": content}

    def _message(self, text: str, status: str) -> dict[str, Any]:
        content = [_part(text)] if status == "completed" else []
        return {
            "type": "message",
            "id": self._message_id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        text = msgspec.to_builtins(body.text) if body.text and body.text.format else {"format": {"type": "text"}}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._asked.model,
            "output": output,
            "parallel_tool_calls": not self._asked.one_call,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": self._asked.request.params.temperature,
            "text": text,
            "tool_choice": msgspec.to_builtins(body.tool_choice) or "auto",
            "tools": [_tool(t) for t in body.tools or []],
            "top_p": self._asked.request.params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    def _finished(self, found: Answered, output: list[dict[str, Any]], reasoning: int) -> dict[str, Any]:
        result, [candidate] = found.result, found.choices
        cut = candidate.finish_reason not in ("stop", "tool_calls")
        body = self._object("incomplete" if cut else "completed", output)
        if cut:
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        body["usage"] = {
            "input_tokens": result.usage.prompt,
            "input_tokens_details": {"cached_tokens": result.usage.cached},
            "output_tokens": candidate.tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": result.usage.prompt + candidate.tokens,
        }
        if self._asked.is_vote or self._asked.events:
            body["conclave"] = votes.outcome(result)
        if self._body.store is not False:
            answer = types_pb2.Message(role="assistant", content=candidate.text)
            for item in output:
                if item["type"] == "function_call":
                    answer.tool_calls.add(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            self._remembered.keep(self._id, Kept([*self._said, answer], _encode(body)))
        return body

    # ---- events -----------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = _encode({"type": kind, "sequence_number": self._events} | fields)
        self._events += 1
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"

    def _text_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._message_id, output_index=self._first, content_index=0, **fields)

    def _thought_event(self, kind: str, **fields: Any) -> bytes:
        where = {"item_id": self._thought_id, "output_index": 0, "content_index": 0}
        return self._event(f"response.reasoning_text.{kind}", **where, **fields)

    def _thought_ends(self, text: str) -> bytes:
        item = self._thought(text, "completed")
        return self._thought_event("done", text=text) + self._event(
            "response.output_item.done", output_index=0, item=item
        )

    def _message_begins(self) -> bytes:
        item = self._message("", "in_progress")
        return self._event("response.output_item.added", output_index=self._first, item=item) + self._text_event(
            "response.content_part.added", part=_part("")
        )

    def _message_ends(self, text: str) -> bytes:
        return (
            self._text_event("response.output_text.done", text=text, logprobs=[])
            + self._text_event("response.content_part.done", part=_part(text))
            + self._event("response.output_item.done", output_index=self._first, item=self._message(text, "completed"))
        )

    def _calls(self, call: dict[str, Any], index: int) -> bytes:
        begun = call | {"arguments": "", "status": "in_progress"}
        where = {"item_id": call["id"], "output_index": index}
        arguments = call["arguments"]
        return (
            self._event("response.output_item.added", output_index=index, item=begun)
            + self._event("response.function_call_arguments.delta", delta=arguments, **where)
            + self._event("response.function_call_arguments.done", arguments=arguments, name=call["name"], **where)
            + self._event("response.output_item.done", output_index=index, item=call)
        )


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{secrets.token_hex(16)}",
        "call_id": f"call_{secrets.token_hex(12)}",
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _tool(tool: schema.Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": False,
    }
