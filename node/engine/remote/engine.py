"""Jobs as requests to an OpenAI-compatible server, with the same face as the local engine's.

Every candidate is a request of its own, with its own seed, streamed: so each can be cancelled (its connection is
closed), and a server that caches prefixes (all of those named in the package) computes the prompt once. There is no KV
here: `commit` has nothing to keep, a topic's next turn sends the whole conversation again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from node.core.slots import Speeds
from node.engine.backend import ModelInfo
from node.engine.face import Load
from node.engine.job import Done, Ended, Event, Job, Prefilled, Text
from node.engine.remote import request
from node.engine.remote.options import RemoteOptions
from node.engine.remote.request import Dialect
from node.engine.remote.server import Refused, Server
from node.engine.remote.stream import Answer
from node.errors import BackendError, ConclaveError, InvalidRequest, NotReady, Overloaded
from node.types import Candidate, FinishReason, Message, Tool

log = logging.getLogger(__name__)

VOTE = "conclave"  # what `node.api.http.names` calls a vote
_CONTEXT = 32_768  # where a server does not say how much it holds
_CHARS_A_TOKEN = 3.5  # for estimates


@dataclass(slots=True, eq=False)
class _Run:
    """A job on its way: its candidates' tasks, and where their events go."""

    job: Job
    events: asyncio.Queue[Event | ConclaveError | None] = field(default_factory=asyncio.Queue)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    first_s: float = 0.0  # seconds to the first token of any candidate
    prompt: int = 0
    cached: int = 0
    good: int = 0
    error: ConclaveError | None = None


class RemoteEngine:
    """A model behind an HTTP API. `transport` is for tests."""

    def __init__(self, options: RemoteOptions, *, node: str = "", transport: Any = None) -> None:
        self._o = options
        self._node = node
        self._server = Server(options, transport)
        self._dialect = Dialect()
        self._info: ModelInfo | None = None
        self._runs: dict[str, _Run] = {}
        self._room = asyncio.Semaphore(options.sequences)
        self._active = 0
        self._closed = False
        self.decode_tokens_per_s = 0.0
        self.speeds = Speeds()
        self.kv_bytes = 0.0
        self.sample = None
        self.refuted = 0  # nothing is taken over here

    # ---- what it is -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """The server's model."""
        if self._info is None:
            raise NotReady("the server has not been asked yet")
        return self._info

    @property
    def load(self) -> Load:
        """How busy it is, as far as this node keeps it busy."""
        return Load(self.free_sequences, sum(len(run.waiting) for run in self._runs.values()), 0)

    @property
    def free_sequences(self) -> int:
        """Requests that could be sent now."""
        return max(self._o.sequences - self._active, 0)

    async def start(self) -> None:
        """Ask the server for its models. Raises BackendError, or Unauthenticated for a wrong key."""
        models = await self._server.models()
        names = [str(m["id"]) for m in models]
        if not names:
            raise BackendError(f"{self._o.url} has no model loaded: load one there first")
        name = self._o.model or _usual(names)
        if name not in names:
            raise InvalidRequest(f"--model {name!r} is not served by {self._o.url}: it has {', '.join(names[:8])}")
        slot = await self._server.slot_tokens()
        self._dialect = replace(self._dialect, grammar=slot > 0)  # only llama-server has GBNF under this name
        context = self._o.context or _context_of(models[names.index(name)]) or slot or _CONTEXT
        self._info = ModelInfo(
            name=name,
            backend="openai",
            fingerprint=hashlib.sha256(f"openai {name}".encode()).hexdigest(),
            description=f"{name} at {self._o.url}",
            sequences=self._o.sequences,
            context=context,
            cells=0,
            batch=0,
            vocabulary=0,
        )

    # ---- text -------------------------------------------------------------------------------------------------------

    async def prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, is_raw: bool, think: bool | None = None
    ) -> tuple[int, ...]:
        """No tokens: only the server knows its template and its vocabulary."""
        return ()

    async def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None) -> str:
        """Raises InvalidRequest: the template is the server's."""
        raise InvalidRequest("this node's model is on another server, which has its template: ask that server")

    async def tokens(self, text: str, *, is_part: bool) -> Sequence[int]:
        """Raises InvalidRequest: tokens are the server's."""
        raise _unknown()

    def piece(self, token: int) -> bytes:
        """Raises InvalidRequest: tokens are the server's."""
        raise _unknown()

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """An estimate, by characters."""
        return [math.ceil(len(text) / _CHARS_A_TOKEN) for text in texts]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The server's vectors, made length 1. Raises BackendError where it gives none."""
        vectors = await self._server.embeddings(self.info.name, texts)
        if len(vectors) != len(texts) or not all(math.isfinite(x) for v in vectors for x in v):
            raise BackendError(f"{self._o.url} sent what is no embedding")
        return [[x / (math.hypot(*v) or 1.0) for x in v] for v in vectors]

    # ---- jobs -------------------------------------------------------------------------------------------------------

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job, `Ended` last. Raises what every candidate failed with."""
        if self._closed or self._info is None:
            raise NotReady("the engine is not running")
        if job.id in self._runs:
            raise BackendError(f"job {job.id} is already running")
        if sum(len(run.waiting) for run in self._runs.values()) > self._o.queue:
            raise Overloaded("too many candidates are waiting (--queue): try again later")
        for seed in job.candidates[:1]:
            request.body(self._info.name, job, seed[1], self._dialect)  # what cannot be asked for is said at once
        run = self._runs[job.id] = _Run(job, waiting=list(job.candidates))
        deadline = None
        if job.deadline is not None:
            delay = max(job.deadline - time.monotonic(), 0.0)
            deadline = asyncio.get_running_loop().call_later(delay, self._stop, run, None, FinishReason.DEADLINE)
        try:
            self._begin(run, len(run.waiting) if not job.wave else job.wave)
            while (event := await run.events.get()) is not None:
                if isinstance(event, ConclaveError):
                    raise event
                yield event
            yield Prefilled(job.id, run.prompt, run.cached, 0.0, run.first_s * 1e3)
            yield Ended(job.id)
        finally:
            if deadline is not None:
                deadline.cancel()
            run.waiting.clear()
            tasks = list(run.tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del self._runs[job.id]

    def cancel(self, job: str, candidates: Collection[int] | None = None) -> None:
        """Close the connections of candidates; each comes as a `Done` with what it had written."""
        if (run := self._runs.get(job)) is not None:
            self._stop(run, candidates, FinishReason.CANCELLED)

    def expect(self, job: str, ballots: int) -> None:
        """Nothing: whose turn it is, the server decides."""

    def commit(self, job: str, winner: int = 0, topic: str = "") -> None:
        """Nothing is kept here."""

    async def held(self, topic: str) -> tuple[Sequence[int], Speeds]:
        """No KV is here."""
        return (), Speeds()

    async def export(self, topic: str, start: int = 0) -> tuple[Sequence[int], Any] | None:
        """No KV is here."""
        return None

    async def adopt(self, topic: str, tokens: Sequence[int], state: Any) -> bool:
        """No KV is taken."""
        return False

    async def forget(self, topic: str) -> None:
        """Nothing to let go of."""

    async def close(self) -> None:
        """Cancel everything and close the connections."""
        self._closed = True
        for run in list(self._runs.values()):
            self._stop(run, None, FinishReason.CANCELLED)
        await self._server.close()

    def _begin(self, run: _Run, count: int) -> None:
        begun = run.waiting[:count]
        del run.waiting[:count]
        for candidate, seed in begun:
            task = run.tasks[candidate] = asyncio.create_task(self._candidate(run, candidate, seed))
            task.add_done_callback(functools.partial(self._over, run, candidate))

    def _over(self, run: _Run, candidate: int, task: asyncio.Task[None]) -> None:
        """A candidate's task has ended; one that was cancelled before its first step has said nothing."""
        if run.tasks.pop(candidate, None) is not task:
            return
        if task.cancelled():
            self._done(run, candidate, Answer(reason=FinishReason.CANCELLED), 0.0)
        if len(run.tasks) <= run.job.wave // 4:
            self._begin(run, len(run.waiting))
        self._settle(run)

    def _stop(self, run: _Run, candidates: Collection[int] | None, reason: FinishReason) -> None:
        for candidate, _ in [w for w in run.waiting if candidates is None or w[0] in candidates]:
            run.waiting = [w for w in run.waiting if w[0] != candidate]
            self._done(run, candidate, Answer(reason=reason), 0.0)
        for candidate, task in run.tasks.items():
            if candidates is None or candidate in candidates:
                task.cancel(reason.value)
        self._settle(run)

    async def _candidate(self, run: _Run, candidate: int, seed: int) -> None:
        """One candidate from its request to its `Done`. One that fails is lost; the job fails if all do."""
        answer, started = Answer(), time.monotonic()
        try:
            async with self._room:
                self._active += 1
                try:
                    started = time.monotonic()
                    await self._ask(run, candidate, seed, answer)
                    run.good += 1
                finally:
                    self._active -= 1
        except asyncio.CancelledError as e:
            answer.reason = (
                FinishReason.DEADLINE if e.args[:1] == (FinishReason.DEADLINE.value,) else FinishReason.CANCELLED
            )
        except ConclaveError as e:
            log.warning("a candidate is lost: %s", e.message)
            run.error = run.error or e
            answer.reason = FinishReason.CANCELLED
        except Exception as e:  # a defect of ours must not leave the job waiting
            log.exception("a candidate failed")
            run.error = run.error or BackendError(f"internal error with the server's answer: {e!r}")
            answer.reason = FinishReason.CANCELLED
        self._done(run, candidate, answer, started)

    def _settle(self, run: _Run) -> None:
        if not run.tasks and not run.waiting:
            run.events.put_nowait(run.error if run.error is not None and not run.good else None)

    def _done(self, run: _Run, candidate: int, answer: Answer, started: float) -> None:
        run.prompt, run.cached = max(run.prompt, answer.prompt_tokens), max(run.cached, answer.cached_tokens)
        run.events.put_nowait(
            Done(
                run.job.id,
                Candidate(
                    id=candidate,
                    node=self._node,
                    text=answer.text,
                    tokens=answer.tokens,
                    mean_logprob=answer.mean_logprob,
                    finish_reason=answer.reason or FinishReason.STOP,
                    latency_ms=(time.monotonic() - started) * 1e3 if started else 0.0,
                    tool_calls=answer.calls,
                    logprobs=tuple(answer.logprobs) if run.job.params.logprobs else (),
                ),
            )
        )

    # ---- one request ------------------------------------------------------------------------------------------------

    async def _ask(self, run: _Run, candidate: int, seed: int, answer: Answer) -> None:
        """Send the request; once more in a plainer dialect if the server does not know what it was asked."""
        while True:
            dialect = self._dialect
            try:
                return await self._stream(run, candidate, request.body(self.info.name, run.job, seed, dialect), answer)
            except Refused as e:
                plainer = _plainer(dialect, str(e))
                if plainer is None or (run.job.params.logprobs and not plainer.logprobs):
                    raise InvalidRequest(f"{self._o.url} refused: {e}") from None
                log.info("%s refused (%s): asked more plainly from here on", self._o.url, e)
                self._dialect = plainer

    async def _stream(self, run: _Run, candidate: int, body: dict[str, Any], answer: Answer) -> None:
        """Read one streamed answer. Raises Refused."""
        first = last = 0.0
        async with contextlib.aclosing(self._server.stream(request.path(run.job), body)) as events:
            async for data in events:
                text, logprobs = answer.add(data)
                if text or logprobs:
                    last = time.monotonic()
                    first = first or last
                    run.first_s = run.first_s or first - run.started
                    pairs = ((candidate, logprobs),) if logprobs and run.job.params.logprobs else ()
                    run.events.put_nowait(Text(run.job.id, ((candidate, text),), pairs))
        if answer.reason is None:
            raise BackendError(f"{self._o.url} broke off in the middle of an answer")
        if answer.tokens > 1 and last > first:
            speed = (answer.tokens - 1) / (last - first)
            self.decode_tokens_per_s = 0.7 * (self.decode_tokens_per_s or speed) + 0.3 * speed


def _plainer(dialect: Dialect, refused: str) -> Dialect | None:
    """What to leave out next, by what the server complains of; None if there is nothing more."""
    if dialect.logprobs and "logprob" in refused.lower():
        return replace(dialect, logprobs=False)
    if dialect.extras:
        return replace(dialect, extras=False)
    return replace(dialect, logprobs=False) if dialect.logprobs else None


def _context_of(model: dict[str, Any]) -> int:
    """Tokens that a model holds, as vLLM (max_model_len) and LM Studio (max_context_length) list it; 0: not said."""
    for key in ("max_model_len", "loaded_context_length", "max_context_length", "context_length"):
        with contextlib.suppress(TypeError, ValueError):
            if (found := int(model.get(key) or 0)) > 0:
                return found
    return 0


def _usual(names: Sequence[str]) -> str:
    """The model that is used when nobody names one: the first, but of another node of ours its own model.

    Its first name is a vote over its mesh. Where this node is of that mesh too, the vote would ask this node again.
    """
    return names[-1] if names[0] == VOTE and f"{VOTE}:fast" in names else names[0]


def _unknown() -> InvalidRequest:
    return InvalidRequest("this node's model is on another server, which takes text: token ids are not known here")
