"""What fails in the backend costs what was in its batch, and nothing else; ten thousand requests leave nothing."""

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.backend import CacheFull, Row
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Ended, Event, Failed, Scheduler, job
from node.errors import BackendError, Overloaded
from node.types import Message, SamplingParams
from tests.engine.drive import Clock, assert_nothing_leaked, drain


class Breaks(FakeBackend):
    """Fails as llama_decode does: 1 leaves everything as it was, another code after some rows were computed.

    `full` and `aborts` say for a batch whether it fails so.
    """

    def __init__(self, **limits: int) -> None:
        super().__init__(FakeSpec(), **limits)  # type: ignore[arg-type]
        self.full: Callable[[Sequence[Row]], bool] = lambda _: False
        self.aborts: Callable[[Sequence[Row]], bool] = lambda _: False
        self.code = 2
        self.batches: list[set[int]] = []  # sequences of each batch that was tried

    def decode(self, rows: Sequence[Row]) -> None:
        self.batches.append({row.sequence for row in rows})
        if self.full(rows):
            raise CacheFull("no KV cells are left for the batch")
        if self.aborts(rows):
            super().decode(rows[: len(rows) // 2] or rows)
            raise BackendError(f"llama_decode failed with {self.code}")
        super().decode(rows)


def submit(
    scheduler: Scheduler, backend: Breaks, id: str, words: int = 5, candidates: int = 1, topic: str = ""
) -> None:
    text = " ".join(f"{id}-{i}" for i in range(words))
    prompt = backend.tokenize(backend.render([Message("user", text)], []))
    scheduler.submit(job(id, prompt, range(1, candidates + 1), SamplingParams(max_tokens=40), 7, topic=topic))


def answers(events: list[Event]) -> dict[str, set[str]]:
    said: dict[str, set[str]] = {}
    for event in events:
        if isinstance(event, Done):
            said.setdefault(event.job, set()).add(event.candidate.text)
    return said


def failures(events: list[Event]) -> dict[str, Exception]:
    return {e.job: e.error for e in events if isinstance(e, Failed)}


def test_a_full_cache_makes_idle_topics_leave_and_the_batch_is_tried_again() -> None:
    backend = Breaks()
    scheduler = Scheduler(backend, Clock(), memory=1 << 20)
    for topic in "abc":
        submit(scheduler, backend, topic, words=20, topic=topic)
        drain(scheduler)
        scheduler.commit(topic, 1)
    submit(scheduler, backend, "d", words=20)
    drain(scheduler)  # ended, and nobody has said who won
    assert scheduler.slots.resident == 3
    assert backend.used_cells > 150
    backend.full = lambda rows: backend.used_cells + len(rows) > 100
    submit(scheduler, backend, "x", words=20, candidates=2)
    events = drain(scheduler)
    assert not failures(events)
    assert answers(events) == {"x": {"echo: " + " ".join(f"x-{i}" for i in range(20))}}
    assert scheduler.slots.parked > 0
    assert_nothing_leaked(backend, scheduler)


def test_when_nothing_idle_is_left_the_request_that_came_last_fails() -> None:
    backend = Breaks()
    scheduler = Scheduler(backend, Clock())
    submit(scheduler, backend, "a", words=20)
    submit(scheduler, backend, "b", words=20)
    backend.full = lambda rows: backend.used_cells + len(rows) > 60
    events = drain(scheduler)
    [(failed, error)] = failures(events).items()
    assert failed == "b"
    assert isinstance(error, Overloaded)
    assert "KV cells" in error.message
    assert answers(events)["a"] == {"echo: " + " ".join(f"a-{i}" for i in range(20))}
    backend.full = lambda _: True
    submit(scheduler, backend, "c")
    assert set(failures(drain(scheduler))) == {"c"}
    assert_nothing_leaked(backend, scheduler)


def test_a_prompt_whose_first_chunk_did_not_fit_is_computed_from_its_beginning() -> None:
    backend = Breaks(batch=16)
    scheduler = Scheduler(backend, Clock())
    tries = []

    def full(rows: Sequence[Row]) -> bool:
        tries.append(rows)
        return len(tries) in (2, 3)

    submit(scheduler, backend, "a", words=10, topic="t")
    drain(scheduler)  # what it leaves makes room twice: when it is committed, and when its topic is forgotten
    backend.full = full
    submit(scheduler, backend, "b", words=50)
    events = drain(scheduler)
    assert answers(events) == {"b": {"echo: " + " ".join(f"b-{i}" for i in range(39))}}, "40 tokens with its ends"
    assert_nothing_leaked(backend, scheduler)


@pytest.mark.parametrize("code", [-1, 2, -2, -3])
def test_what_makes_a_batch_fail_fails_and_nothing_beside_it(code: int) -> None:
    """llama.h: 2 aborted, -1 invalid input, -2 could not allocate, -3 could not compute."""
    backend = Breaks(batch=16, sequences=4)
    backend.code = code
    scheduler = Scheduler(backend, Clock())
    submit(scheduler, backend, "a", candidates=2)
    scheduler.step()
    submit(scheduler, backend, "bad", words=60)
    submit(scheduler, backend, "short", words=3)
    poison = backend.tokenize(" bad-5")[0]
    backend.aborts = lambda rows: any(row.token == poison for row in rows)
    events = drain(scheduler)
    assert {id: str(e) for id, e in failures(events).items()} == {"bad": f"llama_decode failed with {code}"}
    assert answers(events) == {
        id: {f"echo: {' '.join(f'{id}-{i}' for i in range(n))}"} for id, n in (("a", 5), ("short", 3))
    }
    assert_nothing_leaked(backend, scheduler)


def test_a_backend_that_always_fails_fails_what_was_in_the_batch_and_nothing_that_waited() -> None:
    backend = Breaks(batch=16, sequences=3)
    scheduler = Scheduler(backend, Clock())
    submit(scheduler, backend, "a", candidates=2)
    scheduler.step()
    submit(scheduler, backend, "long", words=60)
    submit(scheduler, backend, "later", words=3)  # there is no sequence for it yet
    backend.aborts = lambda rows: True
    events = scheduler.step()
    assert set(failures(events)) == {"a", "long"}
    assert all("failed with 2" in str(e) for e in failures(events).values())
    backend.aborts = lambda rows: False
    submit(scheduler, backend, "next")
    events = drain(scheduler)
    assert not failures(events)
    assert set(answers(events)) == {"later", "next"}
    assert_nothing_leaked(backend, scheduler)


def test_what_cannot_go_back_fails_with_the_batch() -> None:
    """As with a small window, where a rollback may be refused."""
    backend = Breaks(sequences=4)
    scheduler = Scheduler(backend, Clock())
    for id in ("a", "b"):
        submit(scheduler, backend, id)
    scheduler.step()
    truncate, tried = backend.truncate, len(backend.batches)
    backend.aborts = lambda rows: len(backend.batches) == tried + 1
    backend.truncate = lambda sequence, length: False  # type: ignore[method-assign]
    assert set(failures(scheduler.step())) == {"a", "b"}
    backend.truncate = truncate  # type: ignore[method-assign]
    assert scheduler.idle
    assert_nothing_leaked(backend, scheduler)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 0.1, 0.3]))
def test_whatever_fails_every_job_ends_once_and_nothing_leaks(
    seed: int, sequences: int, full: float, aborts: float
) -> None:
    rng = random.Random(seed)
    backend = Breaks(sequences=sequences, context=100, cells=400, batch=24)
    scheduler = Scheduler(backend, Clock(), memory=rng.choice([0, 4000]))
    backend.full = lambda _: rng.random() < full
    backend.aborts = lambda _: rng.random() < aborts
    events: list[Event] = []
    for i in range(15):
        submit(scheduler, backend, f"j{i}", rng.randint(1, 30), rng.randint(1, 3), topic=rng.choice(["", "a", "b"]))
        for _ in range(rng.randint(0, 4)):
            events += scheduler.step()
        if rng.random() < 0.3:
            events += scheduler.cancel(f"j{rng.randint(0, i)}")
        if rng.random() < 0.5:
            scheduler.commit(f"j{rng.randint(0, i)}", rng.randint(0, 3))
        scheduler.rest()
    events += drain(scheduler)
    assert sorted(e.job for e in events if isinstance(e, Ended | Failed)) == sorted(f"j{i}" for i in range(15))
    for id, texts in answers(events).items():
        whole = "echo: " + " ".join(f"{id}-{i}" for i in range(40))
        assert all(whole.startswith(text) for text in texts)
    assert_nothing_leaked(backend, scheduler)


@pytest.mark.parametrize(("requests", "memory"), [(2_000, 0), (10_000, 10_000)])
def test_thousands_of_short_requests_with_cancels_leave_nothing_behind(requests: int, memory: int) -> None:
    rng = random.Random(1)
    backend = Breaks(sequences=8, context=200, cells=800, batch=64)
    scheduler = Scheduler(backend, Clock(), queue_limit=40, memory=memory)
    ended = 0
    for i in range(requests):
        id = f"j{i % 500}"  # names come back, words too
        if id in scheduler._running or any(r.job.id == id for r in scheduler._queue):
            scheduler.cancel(id)
        scheduler.commit(id)
        submit(scheduler, backend, id, rng.randint(1, 4), rng.randint(1, 3), topic=f"t{i % 30}" if i % 3 else "")
        while scheduler.queued > 30 or rng.random() < 0.5:
            for event in scheduler.step():
                if isinstance(event, Ended | Failed):
                    ended += 1
                    scheduler.commit(event.job, rng.randint(0, 3))
        if rng.random() < 0.3:
            scheduler.cancel(f"j{rng.randrange(500)}")
        scheduler.rest()
    drain(scheduler)
    assert ended > 0.4 * requests
    assert len(scheduler._ended) < 10
    assert_nothing_leaked(backend, scheduler)
    assert not scheduler._running
    assert scheduler.slots.parked_bytes == 0
