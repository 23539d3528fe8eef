"""What answers of Ollama's API have in common: errors are texts, times RFC 3339, streams an object a line."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.responses import Response

from node.api.http import errors

MEDIA = b"application/x-ndjson"
_encode = msgspec.json.encode


def line(value: dict[str, Any]) -> bytes:
    """One object of a stream."""
    return _encode(value) + b"\n"


def now() -> str:
    """This moment, as RFC 3339 says it."""
    return stamp(time.time())


def stamp(seconds: float) -> str:
    """Unix time as RFC 3339 says it."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e6):06d}Z"


def failed(error: Exception) -> bytes:
    """The last line of a stream that cannot go on."""
    return line({"error": _text(error)[1]})


def refused(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, text = _text(error)
    headers = {"retry-after": str(errors.RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(_encode({"error": text}), status, headers, "application/json")


def _text(error: Exception) -> tuple[int, str]:
    status, body = errors.rendered(error)
    return status, str(msgspec.json.decode(body)["error"]["message"])
