"""Jobs that have ended and whose winner nobody has named yet: the KV of their candidates waits for that."""

from __future__ import annotations

from collections.abc import Iterator

from node.core.slots import MIN_SHARED
from node.engine.backend import Backend
from node.engine.request import PROMPT_ONLY, Request
from node.engine.slots import UNNAMED, Pool, Slots
from node.engine.stems import Stems

# KV of an ended job that nobody commits (its coordinator died, say) is let go after this long.
HOLD_S = 10.0


class Undecided:
    """By job, the oldest first."""

    def __init__(self, backend: Backend, pool: Pool, slots: Slots, stems: Stems) -> None:
        self._backend = backend
        self._pool = pool
        self._slots = slots
        self._stems = stems
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._requests))

    @property
    def sequences(self) -> int:
        """Sequences that they hold."""
        return sum(len(request.kept) + (request.stem >= 0) for request in self._requests.values())

    def add(self, request: Request, now: float) -> None:
        """A job has ended."""
        request.held_since = now
        self._requests[request.job.id] = request

    def commit(self, job: str, winner: int = PROMPT_ONLY, topic: str = "") -> None:
        """Keep the winner's KV for its topic, or the prompt's if it won elsewhere; `topic` is whose it is where the job
        names none. Unknown jobs are ignored."""
        request = self._requests.pop(job, None)
        if request is None:
            return
        self._pool.cells += request.cells
        name = request.job.topic or topic
        chosen = winner if winner in request.kept else next(iter(request.kept), None)
        for candidate, (sequence, tokens) in request.kept.items():
            if candidate == chosen != winner:
                tokens = tokens[: len(request.job.prompt)]
            is_of_use = bool(name) or len(tokens) >= MIN_SHARED  # others could not begin from it
            if candidate == chosen and is_of_use and self._backend.truncate(sequence, len(tokens)):
                self._slots.keep(name or f"{UNNAMED}{request.job.id}", sequence, tokens)
            else:
                self._backend.drop(sequence)
                self._pool.free.append(sequence)
        self._stems.keep(request, name)

    def commit_oldest(self) -> bool:
        """Let the oldest wait no longer. Says whether there was one."""
        if not self._requests:
            return False
        self.commit(next(iter(self._requests)))
        return True

    def expire(self, now: float) -> None:
        """Let those wait no longer that have waited too long."""
        for job in [job for job, request in self._requests.items() if now - request.held_since > HOLD_S]:
            self.commit(job)
