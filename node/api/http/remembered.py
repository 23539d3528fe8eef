"""Responses that are remembered, to go on from (`previous_response_id`) and to be asked for again.

GET and DELETE /v1/responses/{id}, and GET /v1/responses/{id}/input_items. They last as long as the process, within
bounds: the longest unused go first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from node.errors import InvalidRequest, NotFound
from node.v1 import types_pb2

MAX_REMEMBERED = 1024
MAX_REMEMBERED_BYTES = 64 << 20
MAX_ITEMS = 100  # of a page of input items; OpenAI's own limit
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Kept:
    """A response: the conversation that ends with it, and its object as JSON."""

    messages: list[types_pb2.Message]
    body: bytes = b""

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(m.ByteSize() for m in self.messages) + len(self.body)


class Remembered:
    """Responses by their id."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def get(self, id: str) -> Kept:
        """One of them. Raises NotFound."""
        if id not in self._held:
            raise NotFound(f"response {id[:80]!r} is not remembered here: send the whole conversation as input")
        self._held.move_to_end(id)
        return self._held[id]

    def keep(self, id: str, kept: Kept) -> None:
        """Remember one."""
        self._held[id] = kept
        self._bytes += kept.size
        while len(self._held) > 1 and (len(self._held) > MAX_REMEMBERED or self._bytes > MAX_REMEMBERED_BYTES):
            self.forget(next(iter(self._held)))

    def forget(self, id: str) -> None:
        """Let one go. Raises NotFound."""
        self._bytes -= self.get(id).size
        del self._held[id]


class Stored:
    """The endpoints."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered

    async def get(self, request: Request) -> Response:
        """The response as it was given. Raises NotFound."""
        return _json(self._remembered.get(request.path_params["id"]).body)

    async def delete(self, request: Request) -> Response:
        """Forget it: it can no longer be gone on from. Raises NotFound."""
        id = request.path_params["id"]
        self._remembered.forget(id)
        return _json(_encode({"id": id, "object": "response", "deleted": True}))

    async def input_items(self, request: Request) -> Response:
        """The conversation that it answered, the newest item first unless `order=asc`. Raises ConclaveError."""
        id, asked = request.path_params["id"], request.query_params
        found = items(self._remembered.get(id).messages[:-1], id)
        order, after, limit = asked.get("order", "desc"), asked.get("after"), asked.get("limit", "20")
        if order not in ("asc", "desc"):
            raise InvalidRequest(f"order is {order[:40]!r}: it must be asc or desc")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= MAX_ITEMS:
            raise InvalidRequest(f"limit is {limit[:40]!r}: it must be 1 to {MAX_ITEMS}")
        if order == "desc":
            found.reverse()
        if after is not None:
            at = next((i for i, item in enumerate(found) if item["id"] == after), None)
            if at is None:
                raise InvalidRequest(f"after is {after[:80]!r}, which is no item of this response")
            found = found[at + 1 :]
        page = found[: int(limit)]
        body = {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(found) > len(page),
        }
        return _json(_encode(body))


def items(messages: list[types_pb2.Message], id: str) -> list[dict[str, Any]]:
    """Messages as items of the Responses API; an item's id is made of the response's."""
    out: list[dict[str, Any]] = []

    def add(kind: str, prefix: str, **fields: Any) -> None:
        name = f"{prefix}_{id.removeprefix('resp_')}_{len(out)}"
        out.append({"type": kind, "id": name, "status": "completed"} | fields)

    for m in messages:
        if m.role == "tool":
            add("function_call_output", "fco", call_id=m.tool_call_id, output=m.content)
            continue
        if m.content or not m.tool_calls:
            of = "output_text" if m.role == "assistant" else "input_text"
            more: dict[str, Any] = {"annotations": [], "logprobs": []} if m.role == "assistant" else {}
            add("message", "msg", role=m.role, content=[{"type": of, "text": m.content} | more])
        for call in m.tool_calls:
            add("function_call", "fc", call_id=call.id, name=call.name, arguments=call.arguments)
    return out


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
