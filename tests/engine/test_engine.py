"""The decode thread from asyncio's side: jobs end, leaving one cancels it, a defect costs its request, not the node."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest

from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.scheduler import Done, Ended, Job, job
from node.errors import BackendError, InvalidRequest, NotReady, Overloaded
from node.types import FinishReason, Message, SamplingParams


async def started(spec: FakeSpec | None = None, queue_limit: int = 64, **limits: int) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(spec or FakeSpec(), **limits)  # type: ignore[arg-type]
    engine = Engine(lambda: backend, node="here", queue_limit=queue_limit)
    await engine.start()
    return engine, backend


def make(engine: Engine, id: str, text: str, candidates: int = 1, **params: object) -> Job:
    prompt = engine.backend.tokenize(engine.backend.render([Message("user", text)], []))
    return job(id, prompt, range(1, candidates + 1), SamplingParams(**params), seed=7)  # type: ignore[arg-type]


async def answers(engine: Engine, job: Job) -> list[str]:
    return [e.candidate.text async for e in engine.run(job) if isinstance(e, Done)]


async def until_free(engine: Engine, sequences: int = 16) -> None:
    async with asyncio.timeout(60):
        while engine.free_sequences < sequences:  # noqa: ASYNC110 (the engine has no event for it)
            await asyncio.sleep(0.005)


async def test_jobs_run_side_by_side() -> None:
    engine, backend = await started()
    found = await asyncio.gather(*(answers(engine, make(engine, f"j{i}", f"text {i}", 2)) for i in range(20)))
    assert found == [[f"echo: text {i}"] * 2 for i in range(20)]
    await until_free(engine)
    await engine.close()
    assert backend.used_sequences <= 16


async def test_leaving_a_job_frees_its_sequences() -> None:
    engine, _ = await started(FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=200))
    async with contextlib.aclosing(engine.run(make(engine, "a", "q", 4, max_tokens=10_000))) as events:
        await anext(events)
        assert engine.free_sequences == 12
    await until_free(engine)
    await engine.close()


async def test_cancelled_candidates_come_with_what_they_spent() -> None:
    engine, _ = await started(FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=200))
    seen = []
    async for event in engine.run(make(engine, "a", "q", 3, max_tokens=10_000)):
        if isinstance(event, Done):
            seen.append((event.candidate.finish_reason, event.candidate.tokens > 0))
        elif not seen:
            engine.cancel("a")
    assert seen == [(FinishReason.CANCELLED, True)] * 3
    await engine.close()


async def test_errors_reach_their_job_alone() -> None:
    engine, _ = await started(queue_limit=1, sequences=1, spec=FakeSpec(tokens_per_s=100), context=64)
    with pytest.raises(InvalidRequest, match="64"):
        await answers(engine, make(engine, "long", "w " * 100))
    results = await asyncio.gather(
        *(answers(engine, make(engine, f"j{i}", "q")) for i in range(4)), return_exceptions=True
    )
    assert [r for r in results if isinstance(r, list)] == [["echo: q"]] * sum(isinstance(r, list) for r in results)
    assert any(isinstance(r, Overloaded) for r in results)
    assert await answers(engine, make(engine, "after", "still here")) == ["echo: still here"]
    await engine.close()


class Broken(FakeBackend):
    """Has a defect that shows once."""

    broken = True

    def decode(self, rows: object) -> None:  # type: ignore[override]
        if self.broken and any(row.token for row in rows):  # type: ignore[attr-defined]  # the start uses token 0
            self.broken = False
            raise ZeroDivisionError("a defect")
        super().decode(rows)  # type: ignore[arg-type]


async def test_a_defect_fails_the_request_and_not_the_node(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda: Broken(FakeSpec()))
    await engine.start()
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        await answers(engine, make(engine, "a", "q"))
    assert "a decode step failed" in caplog.text
    assert await answers(engine, make(engine, "b", "fine")) == ["echo: fine"]
    await engine.close()


async def test_a_backend_that_cannot_be_made_fails_the_start() -> None:
    def fails() -> FakeBackend:
        raise InvalidRequest("no such model")

    engine = Engine(fails)
    with pytest.raises(InvalidRequest, match="no such model"):
        await engine.start()
    with pytest.raises(NotReady):
        engine.info  # noqa: B018
    await engine.close()


async def test_closing_ends_running_jobs() -> None:
    engine, _ = await started(FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=100))
    ended = []

    async def run() -> None:
        async for event in engine.run(make(engine, "a", "q", max_tokens=10_000)):
            if isinstance(event, Ended):
                ended.append(event.job)

    task = asyncio.create_task(run())
    async with asyncio.timeout(60):
        while engine.free_sequences == 16:  # noqa: ASYNC110 (the engine has no event for it)
            await asyncio.sleep(0.005)
    await engine.close()
    await task
    assert ended == ["a"]
    with pytest.raises(NotReady):
        await answers(engine, make(engine, "b", "q"))


async def test_the_event_loop_stays_awake_while_the_model_computes() -> None:
    """A step that lasts until the loop has gone on: it would never end if the loop waited for it."""
    computing, went_on = threading.Event(), threading.Event()
    went_on.set()  # until the engine is started

    def compute(_: float) -> None:
        computing.set()
        assert went_on.wait(60), "the loop waited for the model"

    spec = FakeSpec(answers=("w w w",), tokens_per_s=1)
    engine = Engine(lambda: FakeBackend(spec, sleep=compute), node="here")
    await engine.start()
    computing.clear()
    went_on.clear()
    task = asyncio.create_task(answers(engine, make(engine, "a", "q")))
    async with asyncio.timeout(60):
        while not computing.is_set():  # noqa: ASYNC110 (it is set on another thread)
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
    assert not task.done()
    went_on.set()
    assert await task == ["w w w"]
    await engine.close()


async def test_embeddings_are_computed_between_steps() -> None:
    engine, _ = await started(FakeSpec(answers=(" ".join(["w"] * 200),), tokens_per_s=500))
    running = asyncio.create_task(answers(engine, make(engine, "a", "q")))
    same, other = await engine.embed(["the same words", "the same words"]), await engine.embed(["else"])
    assert same[0] == same[1] != other[0]
    assert sum(x * x for x in same[0]) == pytest.approx(1.0)
    assert len(await running) == 1
    await engine.close()


async def test_what_is_held_is_known_at_once_and_after_all_that_was_asked_for() -> None:
    engine, _ = await started()
    for turn in range(20):
        prompt = make(engine, f"j{turn}", f"text {turn}")
        assert await answers(engine, replace(prompt, topic="t")) == [f"echo: text {turn}"]
        engine.commit(f"j{turn}", 1)
        tokens, _ = await engine.held("t")  # the commit may still be on its way
        assert tuple(tokens[: len(prompt.prompt)]) == prompt.prompt
    async with asyncio.timeout(60):
        while engine._obeyed < engine._sent:  # noqa: ASYNC110 (the engine has no event for it)
            await asyncio.sleep(0)
    before = engine._sent
    assert (await engine.held("t"))[0] == tokens
    assert await engine.held("another") == ((), (await engine.held("t"))[1])
    assert engine._sent == before  # nobody had to ask the decode thread, which may be in a step
    await engine.close()
