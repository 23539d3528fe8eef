"""The connections to an OpenAI-compatible server, and the same face as the local engine's.

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

import httpx2

from node.core.slots import Speeds
from node.engine.backend import ModelInfo
from node.engine.face import Load
from node.engine.job import Done, Ended, Event, Job, Prefilled, Text
from node.engine.remote import request
from node.engine.remote.options import KEY, RemoteOptions
from node.engine.remote.request import Dialect
from node.engine.remote.stream import END, Answer, Events, refusal
from node.errors import BackendError, ConclaveError, InvalidRequest, NotReady, Overloaded, Unauthenticated
from node.types import Candidate, FinishReason, Message, Tool

log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_SILENCE_S = 300.0  # a server that says nothing for so long is given up: a long prompt on a slow machine takes minutes
_CONTEXT = 32_768  # where a server does not say how much it holds
_MOST_ANSWER = 64 << 20  # bytes of an answer that is no stream
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
        headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        self._http = httpx2.AsyncClient(
            base_url=options.url,
            headers=headers,
            timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=options.sequences + 4),
            transport=transport,
            follow_redirects=False,  # the key is for this server
        )
        self._dialect = Dialect()
        self._info: ModelInfo | None = None
        self._runs: dict[str, _Run] = {}
        self._room = asyncio.Semaphore(options.sequences)
        self._active = 0
        self._closed = False
        self.decode_tokens_per_s = 0.0
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
        said = await self._get("/models")
        models = [m for m in said.get("data") or () if isinstance(m, dict) and m.get("id")]
        names = [str(m["id"]) for m in models]
        if not names:
            raise BackendError(f"{self._o.url} has no model loaded: load one there first")
        name = self._o.model or names[0]
        if name not in names:
            raise InvalidRequest(f"--model {name!r} is not served by {self._o.url}: it has {', '.join(names[:8])}")
        context = self._o.context or _context_of(models[names.index(name)]) or await self._props() or _CONTEXT
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

    async def _props(self) -> int:
        """llama-server's own: tokens of a slot; 0 elsewhere. Only it has GBNF grammars under this name."""
        with contextlib.suppress(ConclaveError, KeyError, TypeError, ValueError):
            root = httpx2.URL(self._o.url).join("/props")
            said = await self._get(str(root))
            context = int(said["default_generation_settings"]["n_ctx"])
            self._dialect = replace(self._dialect, grammar=True)
            return context
        return 0

    async def _get(self, where: str) -> dict[str, Any]:
        try:
            answer = await self._http.get(where, timeout=_CONNECT_S * 2)
            if answer.status_code != 200:
                raise self._refused(answer.status_code, answer.content)
            said = answer.json()
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None
        except ValueError:
            raise BackendError(f"{self._o.url} is no OpenAI-compatible server: {where} is no JSON") from None
        return said if isinstance(said, dict) else {}

    # ---- text -------------------------------------------------------------------------------------------------------

    async def prompt(self, messages: Sequence[Message], tools: Sequence[Tool], *, is_raw: bool) -> tuple[int, ...]:
        """No tokens: only the server knows its template and its vocabulary."""
        return ()

    def piece(self, token: int) -> bytes:
        """Raises InvalidRequest: tokens are the server's."""
        raise InvalidRequest("this node's model is on another server, which takes text: token ids are not known here")

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """An estimate, by characters."""
        return [math.ceil(len(text) / _CHARS_A_TOKEN) for text in texts]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The server's vectors, made length 1. Raises BackendError where it gives none."""
        body = {"model": self.info.name, "input": list(texts)}
        try:
            answer = await self._http.post("/embeddings", json=body)
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None
        if answer.status_code != 200:
            raise self._refused(answer.status_code, answer.content[:_MOST_ANSWER])
        try:
            data = sorted(answer.json()["data"], key=lambda d: d["index"])
            vectors = [[float(x) for x in d["embedding"]] for d in data]
            if len(vectors) != len(texts) or not all(math.isfinite(x) for v in vectors for x in v):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise BackendError(f"{self._o.url} sent what is no embedding") from None
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

    def commit(self, job: str, winner: int = 0) -> None:
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
        await self._http.aclose()

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
            refused = await self._stream(run, candidate, request.body(self.info.name, run.job, seed, dialect), answer)
            if not refused:
                return
            plainer = _plainer(dialect, refused)
            if plainer is None or (run.job.params.logprobs and not plainer.logprobs):
                raise InvalidRequest(f"{self._o.url} refused: {refused}")
            log.info("%s refused (%s): asked more plainly from here on", self._o.url, refused)
            self._dialect = plainer

    async def _stream(self, run: _Run, candidate: int, body: dict[str, Any], answer: Answer) -> str:
        """Read one streamed answer. Says why the server refused the request as such (400 or 422), empty if not."""
        events, first, last = Events(), 0.0, 0.0
        try:
            async with self._http.stream("POST", request.path(run.job), json=body) as response:
                if response.status_code in (400, 422):
                    return refusal(response.status_code, await _limited(response)) or "bad request"
                if response.status_code != 200:
                    raise self._refused(response.status_code, await _limited(response))
                async for piece in response.aiter_bytes():
                    for data in events.feed(piece):
                        if data == END:
                            break
                        text, logprobs = answer.add(data)
                        if text or logprobs:
                            last = time.monotonic()
                            first = first or last
                            run.first_s = run.first_s or first - run.started
                            pairs = ((candidate, logprobs),) if logprobs and run.job.params.logprobs else ()
                            run.events.put_nowait(Text(run.job.id, ((candidate, text),), pairs))
        except httpx2.HTTPError as e:
            raise self._unreachable(e) from None
        if answer.reason is None:
            raise BackendError(f"{self._o.url} broke off in the middle of an answer")
        if answer.tokens > 1 and last > first:
            speed = (answer.tokens - 1) / (last - first)
            self.decode_tokens_per_s = 0.7 * (self.decode_tokens_per_s or speed) + 0.3 * speed
        return ""

    def _refused(self, code: int, data: bytes) -> ConclaveError:
        said = refusal(code, data)
        if code in (401, 403):
            return Unauthenticated(f"{self._o.url} wants a key, or another one: set {KEY} ({said})")
        if code in (429, 503):
            return Overloaded(f"{self._o.url} is busy or loading: {said}")
        return BackendError(f"{self._o.url} answered {code}: {said}")

    def _unreachable(self, e: Exception) -> BackendError:
        said = " ".join(str(e).split()) or type(e).__name__
        return BackendError(f"{self._o.url} does not answer ({said[:200]}): start the server, or correct --url")


async def _limited(response: Any) -> bytes:
    """The first of what a response says, for an error's line."""
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > 1 << 16:
            break
    return data[: 1 << 16]


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
