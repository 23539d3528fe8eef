"""States that a recurrent model goes on from, over the strict fake: where they are kept, and when they go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Prefilled, Scheduler, job
from node.engine.slots import stem_of
from node.types import Message, SamplingParams
from tests.engine.drive import Clock, assert_nothing_leaked, drain

SYSTEM = Message("system", " ".join(f"rule{i}" for i in range(100)))


def made(sequences: int = 8, cells: int = 0) -> tuple[FakeBackend, Scheduler]:
    backend = FakeBackend(FakeSpec(), sequences=sequences, context=600, cells=cells, batch=64, is_recurrent=True)
    return backend, Scheduler(backend, Clock(), memory=1 << 20, drafts=4)


def prompt(backend: FakeBackend, said: str, *before: Message) -> list[int]:
    return backend.tokenize(backend.render([SYSTEM, *before, Message("user", said)], []))


def ask(
    scheduler: Scheduler, id: str, tokens: list[int], n: int = 1, topic: str = "", wave: int = 0, winner: int = 1
) -> int:
    """Computes a request to its end; says how many of its prompt's tokens were cached."""
    made = job(id, tokens, range(1, n + 1), SamplingParams(max_tokens=20), 1, topic=topic)
    scheduler.submit(replace(made, wave=wave))
    events = drain(scheduler)
    assert sum(isinstance(e, Done) for e in events) == n
    scheduler.commit(id, winner)
    [prefilled] = [e for e in events if isinstance(e, Prefilled)]
    return prefilled.cached


def test_nothing_leaks() -> None:
    backend, scheduler = made(sequences=4)
    for i in range(12):
        ask(scheduler, f"j{i}", prompt(backend, f"{i % 3}"), 1 + i % 7, topic=["", "a", "b"][i % 3], wave=2 * (i % 2))
    assert_nothing_leaked(backend, scheduler)


def test_a_topic_that_is_forgotten_takes_its_stem_along() -> None:
    backend, scheduler = made()
    ask(scheduler, "a", prompt(backend, "one"), topic="t")
    assert scheduler.slots.tokens(stem_of("t"))
    scheduler.slots.forget("t")
    assert not scheduler.slots.tokens(stem_of("t"))
    assert backend.used_sequences == 0


def test_a_topic_has_one_stem_however_many_turns() -> None:
    backend, scheduler = made()
    before: list[Message] = []
    for i in range(5):
        cached = ask(scheduler, f"j{i}", prompt(backend, f"word{i}", *before), topic="t")
        assert (cached > 100) == (i > 0)
        before += [Message("user", f"word{i}"), Message("assistant", f"echo: word{i}")]
    assert scheduler.slots.topics == 2


def test_stems_of_who_runs_make_room_for_others() -> None:
    """As soon as its candidates have begun, a request's stem is as idle as any topic: it takes no slot from others."""
    backend, scheduler = made(sequences=4)
    for i in range(4):
        scheduler.submit(job(f"j{i}", prompt(backend, f"a{i} " * 9), [1], SamplingParams(max_tokens=20), 1))
    for _ in range(12):
        scheduler.step()
    assert (scheduler.queued, scheduler._writing) == (0, 4)


def test_two_prompts_in_one_batch_stop_each_at_its_own_place() -> None:
    backend, scheduler = made()
    for i in range(2):
        scheduler.submit(job(f"j{i}", prompt(backend, f"word{i}"), [1], SamplingParams(max_tokens=2), 1, topic=f"t{i}"))
    drain(scheduler)
    for i in range(2):
        scheduler.commit(f"j{i}", 1)
        assert list(scheduler.slots.tokens(stem_of(f"t{i}"))) == prompt(backend, f"word{i}")[:-1]


@pytest.mark.parametrize("topic", ["", "t"])
def test_another_nodes_answer_costs_no_prefill(topic: str) -> None:
    backend, scheduler = made()
    first = prompt(backend, "one")
    ask(scheduler, "a", first, 3, topic=topic, winner=0)
    second = prompt(backend, "two", Message("user", "one"), Message("assistant", "Something else."))
    assert ask(scheduler, "b", second, topic=topic) == len(first) - 1


def test_a_short_prompt_has_no_stem() -> None:
    backend, scheduler = made()
    short = backend.tokenize("one two three")
    ask(scheduler, "a", short, 9, topic="t", wave=2)
    assert not scheduler.slots.tokens(stem_of("t"))


def test_where_cells_are_few_a_request_still_runs() -> None:
    backend, scheduler = made(sequences=2, cells=130)
    ask(scheduler, "a", prompt(backend, "one"), 3, topic="t")
    assert_nothing_leaked(backend, scheduler)
