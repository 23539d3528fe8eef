"""The seam of every server: requests are read, ConclaveError becomes a status code, and no traceback gets out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError

from node import tracing, wire
from node.errors import ConclaveError, InvalidRequest

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]


class _Seam:
    """What the generated `add_..._to_server` see of a server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """The same handlers come as registered ones: those are taken."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Add a service, each of its calls wrapped once. It is not registered: for each method that is, grpc.aio keeps
        a future, and goes through all of them whenever a call comes (27 of them were a tenth of what a vote cost a
        peer)."""
        seamed = {name: _wrapped(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, seamed),))


def seam(server: grpc.aio.Server) -> grpc.aio.Server:
    """The server, for the generated `add_..._to_server`: requests of what is added to it are read and errors are
    translated for every call."""
    return cast("grpc.aio.Server", _Seam(server))


def _wrapped(handler: _Handler) -> _Handler:
    made = cast(Any, handler)
    read = made.request_deserializer
    # Bytes that are no valid message reach the handler as the error they are, in a stream of requests too: gRPC
    # itself would call it INTERNAL and print a traceback.
    made = made._replace(request_deserializer=lambda data: _read(read, data))
    kind = f"{'stream' if made.request_streaming else 'unary'}_{'stream' if made.response_streaming else 'unary'}"
    wrap = _stream if made.response_streaming else _unary
    return cast("_Handler", made._replace(**{kind: wrap(getattr(made, kind))}))


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
