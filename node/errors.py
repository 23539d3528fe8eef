"""The error taxonomy: what can go wrong, each with the *name* of its canonical gRPC code.

Nothing here imports grpc. One place translates these for gRPC (`node.wire`), one for HTTP, one back from a peer.
The message is one line for a person: what happened, why, and what to do about it.
"""

from __future__ import annotations


class ConclaveError(Exception):
    """Base of every error that may reach a user; `code` is the canonical gRPC code's name."""

    code = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(ConclaveError):
    """The request cannot be served as asked; asking again unchanged will not help."""

    code = "INVALID_ARGUMENT"


class NotFound(ConclaveError):
    """A topic, model or node that was named does not exist here."""

    code = "NOT_FOUND"


class Overloaded(ConclaveError):
    """Every sequence is in use and the queue is full; try again later."""

    code = "RESOURCE_EXHAUSTED"


class NotReady(ConclaveError):
    """The node is starting or stopping."""

    code = "UNAVAILABLE"


class PeerUnavailable(ConclaveError):
    """A peer did not answer, or its stream broke."""

    code = "UNAVAILABLE"


class NoQuorum(ConclaveError):
    """Too few candidates finished for an answer under the asked quorum."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ConclaveError):
    """The deadline passed before any candidate finished."""

    code = "DEADLINE_EXCEEDED"


class IncompatibleSnapshot(ConclaveError):
    """A snapshot of another model, build or KV layout; refused before native code sees it.

    `reason` is one word (`node.core.refusal`).
    """

    code = "FAILED_PRECONDITION"
    reason = ""


class CorruptSnapshot(ConclaveError):
    """A snapshot whose bytes do not match its header; `reason` is one word (`node.core.refusal`)."""

    code = "DATA_LOSS"
    reason = ""


class Unauthenticated(ConclaveError):
    """The caller has no certificate or token of this mesh."""

    code = "UNAUTHENTICATED"


class NotSupported(ConclaveError):
    """A part of the contract that this build does not serve yet; the message names it."""

    code = "UNIMPLEMENTED"


class BackendError(ConclaveError):
    """The inference backend failed; the request is lost, the node goes on."""

    code = "INTERNAL"
