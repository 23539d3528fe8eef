"""Channel options, and the one place where errors meet gRPC codes."""

from __future__ import annotations

import grpc

from node import errors
from node.errors import ConclaveError

MAX_MESSAGE_BYTES = 64 << 20  # Larger than any prompt that fits a context; snapshots travel in chunks.
ERROR_KEY = "conclave-error"  # Metadata of a failed call: the error's name. Without it the connection failed.
MAX_DETAIL = 2000  # characters of an error on the wire: as metadata it may have 8 KiB

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A killed machine sends no FIN: without pings a stream to it hangs until TCP gives up (minutes).
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 4000),
    # What really ends a connection whose ping is not answered: gRPC 1.85 takes its default, a minute, where this is not
    # said, whatever the line above says (measured with a stopped process).
    ("grpc.http2.ping_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Channels of one process must not share a connection: a peer is judged by its own.
    ("grpc.use_local_subchannel_pool", 1),
    # Everything here is on one LAN; a proxy from the environment would only break it.
    ("grpc.enable_http_proxy", 0),
]
# For what is large: so much of a stream may be on its way to us before it is read. With gRPC's 64 KiB both ends wait
# for each other all the time.
BULK_OPTIONS: list[tuple[str, int | str]] = [("grpc.http2.lookahead_bytes", 4 << 20)]
SERVER_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2000),
    ("grpc.http2.max_ping_strikes", 0),
    # Without this a second node on the same port would silently share it.
    ("grpc.so_reuseport", 0),
]


_CODES: dict[str, type[ConclaveError]] = {
    cls.code: cls
    for cls in (
        errors.BackendError,
        errors.InvalidRequest,
        errors.NotFound,
        errors.Overloaded,
        errors.PeerUnavailable,
        errors.DeadlineExceeded,
        errors.IncompatibleSnapshot,
        errors.CorruptSnapshot,
        errors.Unauthenticated,
        errors.NotSupported,
    )
}


def status_code(error: ConclaveError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return grpc.StatusCode[error.code]


def error_metadata(error: ConclaveError) -> tuple[tuple[str, str], ...]:
    """What a failed call says beside its code: that the node itself answered so, and whether to ask again elsewhere.

    gRPC's retry policies know UNAVAILABLE only. A node that stops is worth another attempt, a vote that failed is not.
    """
    name = ((ERROR_KEY, type(error).__name__),)
    return name if isinstance(error, errors.NotReady) else (*name, ("grpc-retry-pushback-ms", "-1"))


def error_from_rpc(error: grpc.RpcError) -> ConclaveError:
    """The error that a failed call stands for; codes outside the taxonomy become PeerUnavailable or BackendError."""
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    detail = (error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None) or str(code.name)
    if code is grpc.StatusCode.CANCELLED:
        return errors.PeerUnavailable(f"the call was cancelled: {one_line(detail, MAX_DETAIL)}")
    return _CODES.get(code.name, errors.BackendError)(one_line(detail, MAX_DETAIL))


def one_line(text: str, most: int) -> str:
    """A text of another node as one line that is safe to show: cut, without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:most])
