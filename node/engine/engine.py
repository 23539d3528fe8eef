"""The decode thread and its asyncio face. This is where asyncio ends.

One thread owns the backend and the scheduler. Commands go in through one queue and are carried out between two steps;
events come out with one `call_soon_threadsafe` a step, however many tokens the step made. Every job ends in `Ended` or
`Failed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any, TypeVar

from node import metrics
from node.core.slots import Speeds
from node.engine import calibration
from node.engine.backend import Backend, ModelInfo
from node.engine.face import Load
from node.engine.pace import SMALL_BATCH
from node.engine.scheduler import PROMPT_ONLY, Done, Ended, Event, Failed, Job, Scheduler
from node.engine.shelf import Shelf
from node.errors import BackendError, ConclaveError, NotReady
from node.types import Message, Tool

T = TypeVar("T")
log = logging.getLogger(__name__)

_Command = Callable[[Scheduler], list[Event]]
_MOMENT_S = 0.02  # a client that goes on at once, a program, does so sooner; a person never does
_INLINE_CHARS = 20_000  # longer prompts are tokenized off the event loop


class Engine:
    """A model that answers jobs. Start it, then `run` jobs from one event loop; `close` ends the thread.

    `make_backend` is called on the decode thread (loading takes seconds). `node` is written into candidates. `memory`,
    `shelf` and `drafts` are the scheduler's.
    """

    def __init__(
        self,
        make_backend: Callable[[], Backend],
        *,
        node: str = "",
        queue_limit: int = 64,
        memory: int = 0,
        shelf: Shelf | None = None,
        drafts: int = 0,
    ) -> None:
        self._make_backend = make_backend
        self._node = node
        self._queue_limit = queue_limit
        self._memory = memory
        self._shelf = shelf
        self._drafts = drafts
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._sent = self._obeyed = 0  # commands, counted by the event loop and by the decode thread
        self._streams: dict[str, asyncio.Queue[Event]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._backend: Backend | None = None
        self._scheduler: Scheduler | None = None
        self._closed = False
        self._ready: asyncio.Future[None] | None = None
        self._load = Load()
        self.decode_tokens_per_s = 0.0
        self.speeds = Speeds()
        self.kv_bytes = 0.0  # a token
        self.sample: Any = None  # a copy of some KV, which shows its layout
        self.refuted = 0  # states from elsewhere that were wrong

    async def start(self) -> None:
        """Load the model and measure its speed. Raises what the backend's constructor raises."""
        self._loop = asyncio.get_running_loop()
        ready = self._ready = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(ready,), name="decode", daemon=True)
        self._thread.start()
        await ready

    @property
    def backend(self) -> Backend:
        """For what may be called from any thread: render, tokenize, piece, is_end. Raises NotReady before `start`."""
        if self._backend is None:
            raise NotReady("the model is still loading")
        return self._backend

    @property
    def info(self) -> ModelInfo:
        """The loaded model. Raises NotReady before `start`."""
        return self.backend.info

    @property
    def load(self) -> Load:
        """How busy the engine is, as of the last step."""
        return self._load

    @property
    def free_sequences(self) -> int:
        """Sequences that no running candidate has."""
        return self._load.free

    async def prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, is_raw: bool, think: bool | None = None
    ) -> tuple[int, ...]:
        """The tokens of a conversation by the model's template, or of a text as it is. Long ones are made elsewhere
        than on the event loop."""
        backend = self.backend

        def make() -> tuple[int, ...]:
            return tuple(backend.tokenize(messages[-1].content if is_raw else backend.render(messages, tools, think)))

        if sum(len(m.content) for m in messages) > _INLINE_CHARS:
            return await asyncio.to_thread(make)
        return make()

    async def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None) -> str:
        """The prompt as text."""
        return await asyncio.to_thread(self.backend.render, messages, tools, think)

    async def tokens(self, text: str, *, is_part: bool) -> Sequence[int]:
        """Tokens of a text, as `Backend.tokenize`."""
        backend = self.backend
        return await asyncio.to_thread(lambda: backend.tokenize(text, is_part=is_part))

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.backend.piece(token)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        backend = self.backend
        return await asyncio.to_thread(lambda: [len(backend.tokenize(text)) for text in texts])

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job, `Ended` last. Leaving the iteration cancels the job. Raises what the job failed with."""
        if self._closed or self._thread is None:
            raise NotReady("the engine is not running")
        if job.id in self._streams:
            raise BackendError(f"job {job.id} is already running")
        stream: asyncio.Queue[Event] = asyncio.Queue()
        self._streams[job.id] = stream
        self._send(lambda scheduler: _submit(scheduler, job))
        over = False
        try:
            while not over:
                event = await stream.get()
                over = isinstance(event, Ended | Failed)
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            del self._streams[job.id]
            if not over:
                self.cancel(job.id)

    def cancel(self, job: str, candidates: Collection[int] | None = None) -> None:
        """Stop candidates of a job (all if None) within one step; each still comes as a `Done`. Unknown ids pass."""
        self._send(lambda scheduler: scheduler.cancel(job, candidates))

    def expect(self, job: str, ballots: int) -> None:
        """Say that so many more ballots may decide a job's vote (`Scheduler.expect`)."""

        def command(scheduler: Scheduler) -> list[Event]:
            scheduler.expect(job, ballots)
            return []

        self._send(command)

    def commit(self, job: str, winner: int = PROMPT_ONLY, topic: str = "") -> None:
        """Say who won an ended job, so that its KV is kept for the topic (`Scheduler.commit`)."""

        def command(scheduler: Scheduler) -> list[Event]:
            scheduler.commit(job, winner, topic)
            return []

        self._send(command)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of length 1; each text is computed between two steps, so that many do not hold up who is writing."""
        return [await self._embed(text) for text in texts]

    async def _embed(self, text: str) -> list[float]:
        def work(_: Scheduler) -> list[float]:
            [vector] = self.backend.embed([text])
            return vector

        return await self._between_steps(work, "an embedding")

    async def held(self, topic: str) -> tuple[Sequence[int], Speeds]:
        """The tokens whose KV is held for a topic (empty: none is), and the speeds measured."""
        if self._scheduler is not None and self._obeyed == self._sent:
            # All that was asked for is done, so this is what the next command would find: two look-ups, each of them
            # safe from any thread. A trip to the decode thread would take as long as its step.
            return self._scheduler.slots.tokens(topic), self._scheduler.slots.speeds
        return await self._between_steps(lambda s: (s.slots.tokens(topic), s.slots.speeds), "a look at a topic")

    async def export(self, topic: str, start: int = 0) -> tuple[Sequence[int], Any] | None:
        """A topic's tokens and a copy of its KV from position `start` on, or more of it; None if there is none."""
        return await self._between_steps(lambda s: s.slots.export(topic, start), "an export of KV")

    async def adopt(self, topic: str, tokens: Sequence[int], state: Any) -> bool:
        """Hold KV that came from elsewhere for a topic (`Slots.adopt`). It must have been checked."""
        return await self._between_steps(lambda s: s.slots.adopt(topic, tokens, state), "an adoption of KV")

    async def forget(self, topic: str) -> None:
        """Let go of the KV that is held for a topic."""
        await self._between_steps(lambda s: s.slots.forget(topic), "forgetting KV")

    async def _between_steps(self, work: Callable[[Scheduler], T], what: str) -> T:
        """Have something done on the decode thread. Raises what it raises, NotReady when there is no thread."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def command(scheduler: Scheduler) -> list[Event]:
            try:
                value = work(scheduler)
                loop.call_soon_threadsafe(_resolve, result, value, None)
            except ConclaveError as e:
                loop.call_soon_threadsafe(_resolve, result, None, e)
            except Exception as e:  # a defect of ours: whoever waits must hear of it
                log.exception("%s failed", what)
                loop.call_soon_threadsafe(_resolve, result, None, BackendError(f"internal error in {what}: {e!r}"))
            return []

        if self._closed or self._thread is None:
            raise NotReady("the engine is not running")
        self._send(command)
        return await result

    def _send(self, command: _Command) -> None:
        self._sent += 1
        self._commands.put(command)

    async def close(self) -> None:
        """Cancel everything and free the model."""
        if self._thread is None or self._closed:
            return
        self._closed = True
        self._commands.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def abandon(self, error: ConclaveError) -> None:
        """The model is lost while native code may be waiting for it for ever: whoever waits here hears of it, and the
        decode thread is left where it is."""
        self._closed = True
        if self._ready is not None:
            _resolve(self._ready, None, error)
        for job, stream in self._streams.items():
            stream.put_nowait(Failed(job, error))

    # ---- the decode thread ------------------------------------------------------------------------------------------

    def _main(self, ready: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            backend = self._make_backend()
            found = calibration.measure(backend, self._commands.empty)
        except Exception as e:
            error = e if isinstance(e, ConclaveError) else BackendError(f"the model could not be loaded: {e}")
            self._loop.call_soon_threadsafe(_resolve, ready, None, error)
            return
        self._backend = backend
        self._scheduler = Scheduler(
            backend,
            time.monotonic,
            queue_limit=self._queue_limit,
            node=self._node,
            memory=self._memory,
            shelf=self._shelf,
            drafts=self._drafts,
            speeds=found.speeds,
        )
        self.sample, self.kv_bytes = found.sample, found.kv_bytes
        for seconds in found.steps:
            self._scheduler.pace.saw(min(SMALL_BATCH, backend.info.sequences), 0, seconds)
        self._publish(self._scheduler)
        self._loop.call_soon_threadsafe(_resolve, ready, None, None)
        try:
            self._steps(self._scheduler)
        finally:
            backend.close()

    def _steps(self, scheduler: Scheduler) -> None:
        while True:
            events = self._obey(scheduler)
            if events is None:
                self._deliver(scheduler.close())
                return
            try:
                events += scheduler.step()
            except Exception as e:  # A defect of ours must cost the running requests, not the node.
                log.exception("a decode step failed")
                events += scheduler.abandon(BackendError(f"internal error in the decode step: {e!r}"))
            self._publish(scheduler)
            self._deliver(events)
            if not scheduler.idle:  # else who goes on at once would wait for it
                scheduler.rest()  # after the tokens are on their way

    def _next(self, scheduler: Scheduler) -> _Command | None:
        """The next command. What can wait is done when none has come for a moment."""
        with contextlib.suppress(queue.Empty):
            return self._commands.get(timeout=_MOMENT_S)
        while self._commands.empty() and scheduler.rest():
            pass
        return self._commands.get()

    def _obey(self, scheduler: Scheduler) -> list[Event] | None:
        """Carry out what was asked for; with nothing to do, wait for it. None: it is over."""
        events: list[Event] = []
        while (scheduler.idle and not events) or not self._commands.empty():
            command = self._next(scheduler)
            if command is None:
                self._deliver(events)
                return None
            try:
                events += command(scheduler)
            except Exception as e:  # as for a step
                log.exception("a command failed")
                events += scheduler.abandon(BackendError(f"internal error in the engine: {e!r}"))
            self._obeyed += 1
            self._publish(scheduler)
        return events

    def _publish(self, scheduler: Scheduler) -> None:
        # Other threads read this, never the scheduler.
        step_s = scheduler.pace.small_step_s
        self.decode_tokens_per_s = 1.0 / step_s if step_s > 0 else 0.0
        self.speeds = scheduler.slots.speeds
        self._load = Load(scheduler.free_sequences, scheduler.queued, scheduler.slots.topics)
        self.refuted = scheduler.slots.refuted

    def _deliver(self, events: list[Event]) -> None:
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.job)
            if stream is not None:
                stream.put_nowait(event)
            elif isinstance(event, Done):  # the job was left, and stopped; what it had written was spent all the same
                metrics.GENERATED_TOKENS.inc(event.candidate.tokens)
                metrics.CANDIDATES.labels(event.candidate.finish_reason.value).inc()


def _submit(scheduler: Scheduler, job: Job) -> list[Event]:
    try:
        scheduler.submit(job)
    except ConclaveError as e:
        return [Failed(job.id, e)]
    return []


def _resolve(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
