"""Why a snapshot was refused: one word for metrics, one line for a person."""

from __future__ import annotations

from enum import StrEnum

from node.errors import ConclaveError, CorruptSnapshot, IncompatibleSnapshot


class Reason(StrEnum):
    """One word a reason; metrics count them."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    FINGERPRINT = "fingerprint"
    LAYOUT = "layout"
    TOKENS = "tokens"
    CUTS = "cuts"
    KEYS = "keys"
    SIZE = "size"
    CHECKSUM = "checksum"
    NUMBERS = "numbers"
    MISSING = "missing"
    UNWANTED = "unwanted"
    STALE = "stale"
    PROBE = "probe"
    SLOW = "slow"


INCOMPATIBLE = frozenset({Reason.FINGERPRINT, Reason.LAYOUT})


def refuse(reason: Reason, detail: str) -> ConclaveError:
    """The error for a snapshot that is refused; its `reason` is the word."""
    error: CorruptSnapshot | IncompatibleSnapshot
    error = IncompatibleSnapshot(detail) if reason in INCOMPATIBLE else CorruptSnapshot(detail)
    error.reason = reason.value
    return error
