"""What answers of Anthropic's API have in common: events have names, errors a type beside them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from node.api.http import errors

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
# OpenAI's types of errors, where Anthropic has other words.
_TYPES = {"server_error": "api_error", "unavailable_error": "overloaded_error", "not_supported_error": "api_error"}
_encode = msgspec.json.encode


def event(kind: str, **fields: Any) -> bytes:
    """One event of a stream."""
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind} | fields) + b"\n\n"


def failed(error: Exception) -> bytes:
    """The last event of a stream that cannot go on."""
    return event("error", error=_error(error)[1])


def refused(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, said = _error(error)
    headers = {"retry-after": str(errors.RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(_encode({"type": "error", "error": said}), status, headers, "application/json")


def _error(error: Exception) -> tuple[int, dict[str, str]]:
    status, body = errors.rendered(error)
    said = msgspec.json.decode(body)["error"]
    return status, {"type": _TYPES.get(said["type"], said["type"]), "message": said["message"]}
