"""Whether there is room for a request, and what it begins from."""

from __future__ import annotations

from node.engine.request import Request
from node.engine.slots import Pool, Slots
from node.engine.undecided import Undecided


class Admission:
    """Gives requests their sequence and their cells, at the cost of topics that are idle."""

    def __init__(self, pool: Pool, slots: Slots, ended: Undecided) -> None:
        self._pool = pool
        self._slots = slots
        self._ended = ended

    def enter(self, request: Request) -> bool:
        """Let a request in if that can be done."""
        job = request.job
        if not (self._pool.free or self._ended or self._slots.resident):
            return False  # nothing could make room, whatever it begins from
        while True:
            match = self._slots.match(job.topic, job.prompt)
            sequences, cells = self._slots.gain(match)
            spare = match.held.topic if match else ""
            # One sequence is needed, one a candidate is wanted.
            self._slots.make_room(len(job.candidates) - sequences, request.cells - cells, spare)
            if len(self._pool.free) >= 1 - sequences and self._pool.cells >= request.cells - cells:
                break
            if self._ended.commit_oldest():
                continue
            if match is not None and not match.take and match.held.is_resident:
                self._slots.forget(spare)  # there is room for one of the two only
            else:
                return False
        request.base, request.cached, request.trial = self._slots.begin(match)
        request.computed = request.cached - (request.trial is not None)
        self._pool.cells -= request.cells
        return True
