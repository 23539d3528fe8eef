"""What tests drive a scheduler with: a clock, steps until it is idle, and what must be free in the end."""

from __future__ import annotations

from node.engine.fake import FakeBackend
from node.engine.scheduler import Event, Scheduler


class Clock:
    """Time that passes a millisecond a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def drain(scheduler: Scheduler, steps: int = 3000) -> list[Event]:
    """Steps until nothing is left to do; all events."""
    events: list[Event] = []
    for _ in range(steps):
        if scheduler.idle:
            return events
        events += scheduler.step()
    raise AssertionError("the scheduler did not come to an end")


def assert_nothing_leaked(backend: FakeBackend, scheduler: Scheduler) -> None:
    """All is free but what is held for topics, which is accounted for to the token; then that can be let go too."""
    for id in list(scheduler._ended):
        scheduler.commit(id)
    assert scheduler.idle
    assert scheduler.free_sequences == backend.info.sequences
    assert backend.used_sequences == scheduler.slots.resident
    assert backend.used_cells == scheduler.slots.idle_cells == backend.info.cells - scheduler._pool.cells
    for topic in list(scheduler.slots._slots):
        scheduler.slots.forget(topic)
    assert backend.used_sequences == backend.used_cells == 0
    assert scheduler.slots.parked_bytes == 0
