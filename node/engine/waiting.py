"""Requests that wait for a sequence: a bounded queue, fair between topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from node.engine.request import Request
from node.errors import Overloaded


class Waiting:
    """In the order of their arrival, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def check(self) -> None:
        """Raise Overloaded if it is full."""
        if len(self) >= self._limit:
            raise Overloaded(f"{len(self)} requests are waiting, which is the limit (--queue): try again later")

    def add(self, request: Request) -> None:
        """Let a request wait."""
        self._requests[request.job.id] = request

    def remove(self, request: Request) -> None:
        """It waits no more."""
        del self._requests[request.job.id]

    def first(self, running: Iterable[Request]) -> Request | None:
        """Whose turn it is: the oldest of the topics with the fewest running; what names no topic is by itself.

        A small request does not overtake a large one that is first, which therefore never starves.
        """
        busy = Counter(request.job.topic for request in running if request.job.topic)
        return min(self._requests.values(), key=lambda r: busy[r.job.topic], default=None)
