"""Text is told at once while few write and ten times a second while more do; none of it is lost or comes late."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Event, Scheduler, Text, job
from node.engine.untold import FEW, TOGETHER_S
from node.types import SamplingParams

STEP_S = 0.03


class Played:
    """Writers on a machine whose steps take STEP_S: what was told when, a step each."""

    def __init__(self, writers: int, *, candidates: int = 1, answer: int = 40, is_polled: bool = False) -> None:
        self.now = 0.0
        backend = FakeBackend(FakeSpec(), sequences=16, context=500, cells=16 * 500)
        self.scheduler = Scheduler(backend, lambda: self.now, queue_limit=100)
        self.told: dict[str, list[float]] = defaultdict(list)
        self.texts: dict[tuple[str, int], str] = defaultdict(str)
        self.done: dict[tuple[str, int], str] = {}
        for i in range(writers):
            prompt = backend.tokenize(f"{i} What is this? ")
            params = SamplingParams(max_tokens=answer + i, ignore_eos=True)
            ids = range(1, candidates + 1)
            self.scheduler.submit(job(str(i), prompt, ids, params, seed=i, is_polled=is_polled))

    def step(self) -> None:
        self.see(self.scheduler.step())
        self.now += STEP_S

    def see(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Text):
                self.told[event.job].append(self.now)
                for candidate, piece in event.pieces:
                    assert (event.job, candidate) not in self.done, "text after the end"
                    self.texts[event.job, candidate] += piece
            elif isinstance(event, Done):
                key = event.job, event.candidate.id
                self.done[key] = event.candidate.text
                assert self.texts[key] == event.candidate.text, "told before its end, and all of it"

    def run(self) -> None:
        while not self.scheduler.idle:
            self.step()


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def test_while_few_write_each_step_is_told() -> None:
    played = Played(FEW)
    played.run()
    for times in played.told.values():
        assert max(gaps(times)) < 1.5 * STEP_S


@pytest.mark.parametrize(("writers", "candidates"), [(FEW + 4, 1), (2, FEW)])
def test_while_many_write_they_are_told_of_ten_times_a_second_and_at_once_of_the_first(
    writers: int, candidates: int
) -> None:
    played = Played(writers, candidates=candidates)
    for _ in range(30):
        played.step()
    assert len(played.told) == writers
    for times in played.told.values():
        assert times[0] <= 2 * STEP_S, "the step that computed the prompt"
        assert min(gaps(times)) > TOGETHER_S - 1e-9
        assert max(gaps(times)) <= TOGETHER_S + STEP_S + 1e-9
    played.run()
    assert len(played.done) == writers * candidates


def test_what_was_held_back_comes_before_the_end_of_who_is_stopped() -> None:
    played = Played(FEW + 2)
    for _ in range(6):
        played.step()
    held = {id: bool(request.untold.pieces) for id, request in played.scheduler._running.items()}
    assert any(held.values())
    for id in held:
        played.see(played.scheduler.cancel(id))
    assert len(played.done) == FEW + 2
    assert all(played.done.values())


def test_of_what_nobody_reads_nothing_is_told_or_kept() -> None:
    played = Played(2, is_polled=True, candidates=FEW)
    for _ in range(5):
        played.see([e for e in played.scheduler.step() if not isinstance(e, Done)])
    assert not played.told
    assert not any(request.untold.pieces for request in played.scheduler._running.values())
