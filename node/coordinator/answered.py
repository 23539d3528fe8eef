"""Answers that were given, in case they are asked for again under the same request id.

They are kept as bytes: as objects, a thousand of them were fifty thousand that the garbage collector went through again
and again, and what they took could not be told. Their number and their size have limits; the oldest go first.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from dataclasses import replace

from node.errors import InvalidRequest
from node.types import GenerateRequest, GenerateResult

MOST = 1024
MOST_BYTES = 16 << 20  # one answer with many log probabilities may be more, and is kept all the same until the next


class Answered:
    """The last answers, by request id."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()  # (what was asked, the answer)
        self._bytes = 0

    def get(self, request: GenerateRequest) -> GenerateResult | None:
        """The answer that a request got before. Raises InvalidRequest if its id was another request's."""
        held = self._held.get(request.request_id)
        if held is None:
            return None
        check_same(request.request_id, same=_content(request) == held[0])
        found: GenerateResult = pickle.loads(held[1])  # our own, which never left this process
        return found

    def keep(self, request: GenerateRequest, result: GenerateResult) -> None:
        """Remember an answer."""
        self._forget(request.request_id)
        data = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        self._held[request.request_id] = _content(request), data
        self._bytes += len(data)
        while len(self._held) > 1 and (len(self._held) > MOST or self._bytes > MOST_BYTES):
            self._forget(next(iter(self._held)))

    def _forget(self, request_id: str) -> None:
        held = self._held.pop(request_id, None)
        if held is not None:
            self._bytes -= len(held[1])


def check_same(request_id: str, *, same: bool) -> None:
    """Raises InvalidRequest where an id is used for two requests."""
    if not same:
        raise InvalidRequest(f"request_id {request_id!r} was used for another request: an id belongs to one request")


def _content(request: GenerateRequest) -> bytes:
    return hashlib.sha256(repr(replace(request, request_id="")).encode()).digest()
