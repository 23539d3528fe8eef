"""The seam of every server: requests are read, ConclaveError becomes a status code, and no traceback gets out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError

from node import tracing, wire
from node.errors import ConclaveError, InvalidRequest

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Seam(grpc.aio.ServerInterceptor):
    """Reads requests and translates errors for every call of a server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wrap one call's handler."""
        handler = cast(Any, await continuation(handler_call_details))
        if handler is None or not handler_call_details.method.startswith("/node.v1."):
            return cast("_Handler | None", handler)
        read = handler.request_deserializer
        # Bytes that are no valid message reach the handler as the error they are, in a stream of requests too: gRPC
        # itself would call it INTERNAL and print a traceback.
        handler = handler._replace(request_deserializer=lambda data: _read(read, data))
        if handler.unary_unary is not None:
            return cast("_Handler", handler._replace(unary_unary=_unary(handler.unary_unary)))
        if handler.stream_unary is not None:
            return cast("_Handler", handler._replace(stream_unary=_unary(handler.stream_unary)))
        if handler.stream_stream is not None:
            return cast("_Handler", handler._replace(stream_stream=_stream(handler.stream_stream)))
        return cast("_Handler", handler._replace(unary_stream=_stream(handler.unary_stream)))


def _read(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except (DecodeError, UnicodeDecodeError):
        return InvalidRequest("the request is not a valid message of this call (texts must be UTF-8)")


def _unary(handle: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[Any, _Context], Awaitable[Any]]:
    async def wrapped(request: Any, context: _Context) -> Any:
        try:
            _arrived(context)
            if isinstance(request, ConclaveError):
                raise request
            return await handle(request, context)
        except Exception as e:
            await _abort(e, context)

    return wrapped


def _stream(handle: Callable[[Any, _Context], AsyncGenerator[Any, None]]) -> Callable[[Any, _Context], Any]:
    async def wrapped(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
        try:
            _arrived(context)
            if isinstance(request, ConclaveError):
                raise request
            async with contextlib.aclosing(handle(request, context)) as events:
                async for event in events:
                    yield event
        except Exception as e:
            await _abort(e, context)

    return wrapped


def _arrived(context: _Context) -> None:
    if tracing.is_on():
        tracing.arrived(tuple(context.invocation_metadata() or ()))


async def _abort(error: Exception, context: _Context) -> None:
    """End a call for an error. One that is none of ours is a defect: its traceback is for the log alone."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, ConclaveError):
        said = wire.one_line(error.message, wire.MAX_DETAIL)
        await context.abort(wire.status_code(error), said, wire.error_metadata(error))
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}; the node's log has more")
