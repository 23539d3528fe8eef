"""OpenAI's error objects, and the place where our errors meet HTTP's codes."""

from __future__ import annotations

import logging

import msgspec
from starlette.responses import Response

from node import wire
from node.errors import ConclaveError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1  # a sequence is free again within a step once its candidate ends; clients back off by themselves

# gRPC's code -> HTTP's, as google.rpc.Code maps them, and OpenAI's type.
_HTTP: dict[str, tuple[int, str]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "FAILED_PRECONDITION": (400, "invalid_request_error"),
    "UNAUTHENTICATED": (401, "authentication_error"),
    "PERMISSION_DENIED": (403, "permission_error"),
    "NOT_FOUND": (404, "not_found_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "UNIMPLEMENTED": (501, "not_supported_error"),
    "UNAVAILABLE": (503, "unavailable_error"),
    "DEADLINE_EXCEEDED": (504, "timeout_error"),
}


def response(error: Exception, code: str | None = None) -> Response:
    """The answer to a request that failed. What is none of our errors is a defect: its traceback is for the log."""
    status, body = rendered(error, code)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return Response(body, status, headers, "application/json")


def rendered(error: Exception, code: str | None = None) -> tuple[int, bytes]:
    """HTTP's code and the error object."""
    if isinstance(error, ConclaveError):
        status, kind = _HTTP.get(error.code, (500, "server_error"))
        message = wire.one_line(error.message, wire.MAX_DETAIL)
        if status == 400 and message.startswith("the prompt is ") and "a sequence holds" in message:
            code = "context_length_exceeded"  # by which agents know that they must shorten it
    else:
        log.error("a request failed", exc_info=error)
        status, kind = 500, "server_error"
        message = f"internal error: {type(error).__name__}; the node's log has more"
    return status, of(message, kind, code)


def of(message: str, kind: str, code: str | None = None) -> bytes:
    """The error object. By its `type` it is one of Anthropic's too, where it is not known yet whose API is meant."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return msgspec.json.encode({"type": "error", "error": error})
