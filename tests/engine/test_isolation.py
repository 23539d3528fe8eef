"""One topic's text never appears in another's context, whatever comes, goes, parks, fails or is cancelled; and what is
said to be cached is what was not computed."""

import asyncio
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import recurrentmodels
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mirror import Mirror

from node.coordinator import Coordinator
from node.engine import slots
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Done, Ended, Event, Failed, Prefilled, Scheduler, job
from node.errors import InvalidRequest
from node.models.resolve import BUNDLED
from node.store import Store
from node.types import EarlyStop, GenerateRequest, Message, SamplingParams
from scripts.bench.make_model import TINY, write
from tests.engine.drive import drain

pytestmark = pytest.mark.usefixtures("emptied")

RISKS = ["full", "abort", "fork", "truncate", "restore", "export"]
TOPICS = ["", "a", "b", "c", "d", "e"]


class Topics(RuleBasedStateMachine):
    """Any course of requests, steps, cancels, commits, parking and failures, over the strict fake."""

    @initialize(
        sequences=st.integers(1, 6),
        cells=st.integers(150, 700),
        memory=st.sampled_from([0, 600, 3000, 100_000]),
        idle=st.sampled_from([0, 60, 512]),
        drafts=st.sampled_from([0, 6]),
        is_recurrent=st.booleans(),
        seed=st.integers(0, 10_000),
    )
    def begin(
        self, sequences: int, cells: int, memory: int, idle: int, drafts: int, is_recurrent: bool, seed: int
    ) -> None:
        self.idle_cells, slots.IDLE_CELLS = slots.IDLE_CELLS, idle
        self.rng = random.Random(seed)
        self.risk = {what: self.rng.choice([0.0, 0.0, 0.0, 0.02, 0.3]) for what in RISKS}
        inner = FakeBackend(
            FakeSpec(), sequences=sequences, context=140, cells=cells, batch=32, is_recurrent=is_recurrent
        )
        self.backend = Mirror(inner, lambda what: self.rng.random() < self.risk.get(what, 0.0))
        self.now = 0.0
        self.scheduler = Scheduler(self.backend, self.clock, memory=memory, queue_limit=1000, drafts=drafts)
        self.talks: dict[str, list[Message]] = {}
        self.jobs: dict[str, str] = {}  # id -> the user's words
        self.over: set[str] = set()

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    @rule(
        topic=st.sampled_from(TOPICS),
        words=st.integers(1, 50),
        candidates=st.integers(1, 5),
        wave=st.sampled_from([0, 0, 2]),
        shared=st.booleans(),
        seed=st.integers(0, 99),
    )
    def ask(self, topic: str, words: int, candidates: int, wave: int, shared: bool, seed: int) -> None:
        """A topic's next message, or a new conversation; some begin with the same system prompt."""
        talk = self.talks.setdefault(topic, [])
        if not topic or len(talk) > 6:
            talk.clear()
        if not talk and shared:
            talk.append(Message("system", " ".join(f"rule{i}" for i in range(30))))
        id = f"job{len(self.jobs)}"
        said = " ".join(f"{id}-{i}" for i in range(words))
        prompt = self.backend.tokenize(self.backend.render([*talk, Message("user", said)], []))
        params = SamplingParams(max_tokens=1 + seed % 25)
        made = job(id, prompt, range(1, candidates + 1), params, seed, topic=topic)
        if seed % 10 == 0:
            made = replace(made, deadline=self.now + 10)
        try:
            self.scheduler.submit(replace(made, wave=wave))
        except InvalidRequest:
            return  # longer than a sequence
        self.jobs[id] = said
        talk += [Message("user", said), Message("assistant", f"echo: {said}")]

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.5
            self.take(self.scheduler.step())

    @rule(
        what=st.sampled_from(RISKS),
        risk=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    )
    def go_wrong(self, what: str, risk: float) -> None:
        """From now on something goes wrong so often."""
        self.risk[what] = risk

    @rule(job=st.integers(0, 30), candidate=st.integers(0, 5))
    def cancel(self, job: int, candidate: int) -> None:
        self.take(self.scheduler.cancel(f"job{job}", [candidate] if candidate else None))

    @rule(job=st.integers(0, 30), winner=st.integers(0, 5))
    def commit(self, job: int, winner: int) -> None:
        self.scheduler.commit(f"job{job}", winner)

    @rule()
    def rest(self) -> None:
        while self.scheduler.rest():
            pass

    @rule(topic=st.sampled_from(TOPICS))
    def forget(self, topic: str) -> None:
        self.scheduler.slots.forget(topic)
        self.talks.pop(topic, None)

    def drain(self) -> None:
        for _ in range(3000):
            if self.scheduler.idle:
                return
            self.step(1)
        raise AssertionError("the scheduler did not come to an end")

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Done):
                whole = f"echo: {self.jobs[event.job]}"
                assert whole.startswith(event.candidate.text), "it says another's words"
            elif isinstance(event, Ended | Failed):
                assert event.job not in self.over
                self.over.add(event.job)

    @invariant()
    def held_as_accounted(self) -> None:
        """What slots say they hold is what the cells hold, and no sequence is anybody's twice."""
        if not hasattr(self, "scheduler"):
            return
        for slot in self.scheduler.slots._slots.values():
            if slot.sequence >= 0 and slot.held.is_resident:
                assert self.backend.held[slot.sequence] == list(slot.held.tokens)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        slots.IDLE_CELLS = self.idle_cells
        self.drain()
        assert self.over == set(self.jobs), "every job ends once"
        for id in list(self.scheduler._ended):
            self.scheduler.commit(id)
        assert self.backend.used == self.scheduler.slots.resident
        for topic in list(self.scheduler.slots._slots):
            self.scheduler.slots.forget(topic)
        assert self.backend.used == 0
        assert self.scheduler.free_sequences == self.backend.info.sequences
        assert self.scheduler._pool.cells == self.backend.info.cells


TestTopics = Topics.TestCase
TestTopics.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bundled", "window", "small window", "recurrent"])
def backend(request: pytest.FixtureRequest) -> Iterator[LlamaBackend]:
    with tempfile.TemporaryDirectory() as folder:
        path = BUNDLED
        if request.param == "recurrent":
            path = Path(folder) / "recurrent.gguf"
            recurrentmodels.write(path, "granitehybrid")
        elif request.param != "bundled":
            path = Path(folder) / "window.gguf"
            write(path, replace(TINY, window=64))
        swa = "small" if "small" in request.param else "full"
        options = LlamaOptions(path, request.param, "fp", sequences=5, context=400, threads=1, swa=swa)
        backend = LlamaBackend(options)
        yield backend
        backend.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_course_of_topics_over_llama_cpp(backend: LlamaBackend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(slots, "IDLE_CELLS", rng.choice([0, 200]))
    mirror = Mirror(backend)
    scheduler = Scheduler(mirror, lambda: 0.0, memory=1 << 24, queue_limit=1000, drafts=rng.choice([0, 4]))
    talks: dict[str, list[Message]] = {}
    failed = 0
    for i in range(25):
        topic = rng.choice(TOPICS)
        talk = talks.setdefault(topic, [])
        if not topic or len(talk) > 4:
            talk.clear()
        talk.append(Message("user", f"What is {i} + {rng.randint(1, 99)}?"))
        prompt = backend.tokenize(backend.render(talk, []))[:300]
        params = SamplingParams(max_tokens=rng.randint(1, 30))
        made = job(f"j{i}", prompt, range(1, rng.randint(2, 7)), params, seed, topic=topic)
        scheduler.submit(replace(made, wave=rng.choice([0, 2])))
        talk.append(Message("assistant", "ok"))
        for _ in range(rng.randint(0, 30)):
            for event in scheduler.step():
                if isinstance(event, Ended):
                    scheduler.commit(event.job, rng.randint(0, 3))
                failed += isinstance(event, Failed)
            scheduler.rest()
        if rng.random() < 0.2:
            scheduler.cancel(f"j{rng.randint(0, i)}")
    failed += sum(isinstance(e, Failed) for e in drain(scheduler))
    assert failed == 0
    assert mirror.checked > 200
    for id in list(scheduler._ended):
        scheduler.commit(id)
    for topic in list(scheduler.slots._slots):
        scheduler.slots.forget(topic)
    assert mirror.used == 0


def turn(
    scheduler: Scheduler, mirror: Mirror, topic: str, prompt: list[int], candidates: int = 3
) -> tuple[int, list[int]]:
    """One turn alone: tokens of its prompt that are said to be cached, which are those that were not computed, and the
    prompt with what the winner wrote."""
    before = len(mirror.rows)
    if mirror.info.is_recurrent:
        candidates = 1  # where sequences are few, others begin later and compute the prompt's last tokens again
    id = f"{topic}{before}"
    params = SamplingParams(max_tokens=12, logprobs=True)
    scheduler.submit(job(id, prompt, range(1, candidates + 1), params, 1, topic=topic))
    events = drain(scheduler)
    scheduler.commit(id, 1)
    while scheduler.rest():
        pass
    [prefilled] = [e for e in events if isinstance(e, Prefilled)]
    computed = sum(row.position < len(prompt) for row in mirror.rows[before:])
    assert prefilled.prompt == len(prompt)
    assert prefilled.cached == len(prompt) - computed
    [winner] = [e.candidate for e in events if isinstance(e, Done) and e.candidate.id == 1]
    return prefilled.cached, [*prompt, *(t.id for t in winner.logprobs)]


@pytest.mark.parametrize("idle", [0, 10_000])
def test_what_is_said_to_be_cached_was_not_computed(
    backend: LlamaBackend, idle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that go on, begin from another's system prompt, come back from memory, or go back in a conversation."""
    monkeypatch.setattr(slots, "IDLE_CELLS", idle)
    mirror = Mirror(backend)
    scheduler = Scheduler(mirror, lambda: 0.0, memory=1 << 24)
    text = backend.tokenize("Pens, cups, 12 boxes of 30 nails and a lazy dog cost 452. Who has them? " * 9)
    system, rest = text[:150], text[150:]
    # A window that is no longer there is computed again, and a state that was not kept.
    whole = (150,) if backend.info.name == "bundled" else (0, 150)
    cached, first = turn(scheduler, mirror, "a", [*system, *rest[:20]])
    assert cached == 0
    cached, second = turn(scheduler, mirror, "a", [*first, *rest[:40]])
    # The token that was drawn last is computed only when it is needed.
    assert cached in (len(first) - 1, len(first))
    cached, _ = turn(scheduler, mirror, "b", [*system, *rest[100:140]])
    assert cached in whole
    cached, _ = turn(scheduler, mirror, "a", [*second, *rest[:30]])
    assert cached in (len(second) - 1, len(second))
    cached, _ = turn(scheduler, mirror, "a", [*system, *rest[60:90]])
    assert cached in whole
    for topic in ("a", "b"):
        scheduler.slots.forget(topic)


def test_a_prompt_that_llama_cpp_refuses_costs_nobody_else_a_token(backend: LlamaBackend) -> None:
    """llama_decode answers -1 for the whole batch; the others' answers are those of the same steps without it."""
    mirror = Mirror(backend)
    scheduler = Scheduler(mirror, lambda: 0.0, memory=1 << 24)
    good = backend.tokenize("Pens, cups and 12 boxes of nails cost 452.")
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    scheduler.submit(job("good", good, [1, 2], params, 1, topic="t"))
    scheduler.step()
    scheduler.step()
    scheduler.submit(job("bad", [*good, backend.info.vocabulary + 7], [1], params, 1))
    events = drain(scheduler)
    assert [e.job for e in events if isinstance(e, Failed)] == ["bad"]
    assert "llama_decode failed with -1" in next(str(e.error) for e in events if isinstance(e, Failed))
    assert [e.candidate.tokens for e in events if isinstance(e, Done)] == [8, 8]
    scheduler.commit("good", 1)
    assert len(scheduler.slots.tokens("t")) == len(good) + 7  # the last one drawn is not computed
    scheduler.slots.forget("t")
    assert mirror.used == 0
    assert scheduler.free_sequences == backend.info.sequences


def test_what_a_client_is_told_is_cached_was_not_computed() -> None:
    """`usage` of a node's answers, over the bundled model."""
    mirrors: list[Mirror] = []

    def make() -> Mirror:
        options = LlamaOptions(BUNDLED, "bundled", "fp", sequences=8, context=1024, threads=1)
        mirrors.append(Mirror(LlamaBackend(options)))
        return mirrors[0]

    async def talk() -> None:
        engine = Engine(make, node="me", memory=1 << 24)
        await engine.start()
        coordinator = Coordinator("me", engine, Alone(), Store(), early_stop=EarlyStop.OFF)  # type: ignore[arg-type]
        hits = 0
        for i in range(9):
            topic = "abc"[i % 3]
            before = len(mirrors[0].rows)
            messages = (Message("system", "Be short."),) if i < 3 else ()
            asked = GenerateRequest(
                (*messages, Message("user", f"My name is {topic}. What is {i} + 12?")),
                topic=topic,
                append=i >= 3,
                candidates=3,
                params=SamplingParams(seed=i),
            )
            usage = (await coordinator.generate(asked)).usage
            computed = sum(row.position < usage.prompt for row in mirrors[0].rows[before:])
            assert usage.cached == usage.prompt - computed
            hits += usage.cached > 0
        assert hits >= 8, "all but the first"
        await coordinator.stop()
        await engine.close()

    asyncio.run(talk())


class Alone:
    """A mesh of one."""

    def peers(self) -> list[object]:
        return []
