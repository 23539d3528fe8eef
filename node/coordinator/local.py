"""The local phase: a request's candidates on this node's engine, for our own vote or for another node's."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace

from node import metrics, tracing
from node.coordinator.events import Wrote
from node.coordinator.traced import Phases
from node.core import answers, formats, thoughts, tools
from node.core.formats import Format
from node.engine import scheduler
from node.engine.face import EngineFace
from node.errors import InvalidRequest
from node.types import Ballot, Candidate, FinishReason, GenerateRequest, TokenLogprob

Warm = Callable[[str, Sequence[int]], Awaitable[None]]
# A candidate that ended in one of these ways votes; one that was cut off by a decision or a deadline does not.
VOTING = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
TAIL_TOKENS = 16  # of a prompt, more than the tag of a thought or the header of a message
_ENDED = {reason: metrics.CANDIDATES.labels(reason.value) for reason in FinishReason}  # looked up once
MAX_TOKEN_CHARS = 256  # the longest tokens of vocabularies are runs of some 100 spaces


class LocalPhase:
    """Runs candidates of a request. `warm(topic, prompt)` may bring KV of a topic to the engine before."""

    def __init__(self, engine: EngineFace, warm: Warm | None = None) -> None:
        self.engine = engine
        self._warm = warm

    async def run(
        self,
        job_id: str,
        request: GenerateRequest,
        candidates: Sequence[int],
        deadline: float | None,
        wave: int = 0,
        span: tracing.Span = tracing.OFF,
        *,
        is_polled: bool = False,
    ) -> AsyncGenerator[scheduler.Event, None]:
        """The engine's events for candidates of a request, with tool calls read; `span` is what it is part of. Raises
        ConclaveError.

        With `is_polled` they are for another node's vote: text comes only with the candidates that ended. Whoever runs
        a job says in the end who won it (`Engine.commit`), but one that is polled without a topic.
        """
        counted, phases = _Counted(is_polled=is_polled), Phases(span)
        prompt = await self.prompt(request)
        told = _Told(Format.PLAIN if request.is_raw else self.engine.info.format, self._opened(request, prompt))
        if request.topic and self._warm is not None:
            await self._warm(request.topic, prompt)
        seed = request.params.seed
        seed = secrets.randbits(63) if seed is None else seed
        job = scheduler.job(
            job_id, prompt, candidates, request.params, seed, deadline, request.topic, wave, is_polled=is_polled,
            messages=request.messages, tools=request.tools, is_raw=request.is_raw,
        )  # fmt: skip
        try:
            async with contextlib.aclosing(self.engine.run(job)) as events:
                async for event in events:
                    counted.see(event)
                    phases.see(event)
                    if isinstance(event, scheduler.Done):
                        if (rest := told.rest(event)) is not None:
                            yield rest
                        made = replace(told.done(event.candidate), model=self.engine.info.name)
                        event = scheduler.Done(event.job, with_calls(made, request), event.more)
                    elif isinstance(event, scheduler.Text):
                        event = told.text(event)
                    yield event
        finally:
            phases.end()

    async def prompt(self, request: GenerateRequest) -> tuple[int, ...]:
        """The tokens of a request's conversation; none where only a server knows them. Raises InvalidRequest."""
        think = self._checked(request)
        return await self.engine.prompt(request.messages, request.tools, is_raw=request.is_raw, think=think)

    async def rendered(self, request: GenerateRequest) -> str:
        """The same as text. Raises InvalidRequest, also where only a server knows it."""
        return await self.engine.render(request.messages, request.tools, self._checked(request))

    def _checked(self, request: GenerateRequest) -> bool | None:
        """Whether the model is told to think or not to. Raises InvalidRequest for what is too long for any sequence."""
        size = _size(request)
        context = self.engine.info.context
        if size > MAX_TOKEN_CHARS * context:
            # Tokenizing it could take minutes, and nothing could stop it.
            raise InvalidRequest(
                f"the prompt is {size} characters and a sequence holds {context} tokens: shorten it, or start the node "
                f"with a larger --ctx"
            )
        params = request.params
        # A schema holds from the first token on, which would be the thought's.
        return False if params.think is None and (params.json_schema or params.grammar) else params.think

    def _opened(self, request: GenerateRequest, prompt: Sequence[int]) -> str:
        """What of the prompt's end belongs to the text, such as the tag of a thought that it opens. Empty where it
        opens none, or where what is written must fit something; but a message's header is never what is written."""
        format = self.engine.info.format
        is_bound = bool(request.params.json_schema or request.params.grammar)
        if request.is_raw or (is_bound and format is not Format.HARMONY):
            return ""
        tail = b"".join(self.engine.piece(token) for token in prompt[-TAIL_TOKENS:])
        return formats.opened(format, tail.decode(errors="replace"))


class _Told:
    """Tells what each candidate writes in the format that everything knows, with what the prompt opened before it."""

    def __init__(self, format: Format, opened: str) -> None:
        self._format = format
        self._opened = opened
        self._is_plain = formats.reader(format) is None
        self._begun: dict[int, formats.Reader | None] = {}

    def text(self, event: scheduler.Text) -> scheduler.Text:
        """What has become certain by more text."""
        if self._is_plain and (not self._opened or all(c in self._begun for c, _ in event.pieces)):
            return event
        return replace(event, pieces=tuple((c, self._piece(c, text)) for c, text in event.pieces))

    def _piece(self, candidate: int, text: str) -> str:
        if candidate not in self._begun:
            self._begun[candidate] = formats.reader(self._format)
            text = self._opened + text
        reader = self._begun[candidate]
        return reader.feed(text) if reader is not None else text

    def rest(self, event: scheduler.Done) -> scheduler.Text | None:
        """What was held back of a candidate that has ended; None if it was nothing."""
        reader = self._begun.get(event.candidate.id)
        text = reader.finish() if reader is not None else ""
        return scheduler.Text(event.job, ((event.candidate.id, text),)) if text else None

    def done(self, candidate: Candidate) -> Candidate:
        """A candidate that has ended, with all of its text."""
        if self._is_plain and not self._opened:
            return candidate
        return replace(candidate, text=formats.whole(self._format, self._opened + candidate.text))


class _Counted:
    """What the metrics learn from one job of this node's engine."""

    def __init__(self, *, is_polled: bool) -> None:
        self._is_polled = is_polled
        self._started = time.monotonic()
        self._last_text: float | None = None

    def see(self, event: scheduler.Event) -> None:
        """Count an event."""
        if isinstance(event, scheduler.Text) and not self._is_polled:
            now = time.monotonic()
            if self._last_text is None:
                metrics.FIRST_TOKEN_SECONDS.observe(now - self._started)
            else:
                metrics.INTER_TOKEN_SECONDS.observe(now - self._last_text)
            self._last_text = now
        elif isinstance(event, scheduler.Done):
            metrics.GENERATED_TOKENS.inc(event.candidate.tokens)
            _ENDED[event.candidate.finish_reason].inc()
        elif isinstance(event, scheduler.Prefilled):
            metrics.PROMPT_TOKENS.inc(event.prompt)
            metrics.CACHED_TOKENS.inc(event.cached)
            metrics.QUEUE_SECONDS.observe(event.queue_ms / 1e3)
            if self._is_polled:  # the first token is drawn with it
                metrics.FIRST_TOKEN_SECONDS.observe(time.monotonic() - self._started)


def written(text: scheduler.Text) -> list[Wrote]:
    """What a step wrote, by candidate. One may have several pieces, where guesses of its next tokens were right."""
    texts: dict[int, str] = {}
    logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
    for c, piece in text.pieces:
        texts[c] = texts.get(c, "") + piece
    for c, tokens in text.logprobs:
        logprobs[c] = (*logprobs.get(c, ()), *tokens)
    return [Wrote(c, texts.get(c, ""), logprobs.get(c, ())) for c in {**texts, **logprobs}]


def _size(request: GenerateRequest) -> int:
    """Characters of what the prompt is made from."""
    said = sum(len(m.content) + sum(len(c.arguments) for c in m.tool_calls) for m in request.messages)
    return said + sum(len(t.description) + len(t.parameters) for t in request.tools)


def with_calls(candidate: Candidate, request: GenerateRequest) -> Candidate:
    """The candidate with the tool calls that its answer asks for read out of it; what it thinks of doing is no call."""
    if not request.tools:
        return candidate
    thought, said = thoughts.split(candidate.text)
    text, calls = tools.parse(said, request.tools)
    if not calls or candidate.finish_reason not in VOTING:
        return candidate
    text = thoughts.joined(thought, text)
    return replace(candidate, text=text, tool_calls=calls, finish_reason=FinishReason.TOOL_CALLS)


def ballot(candidate: Candidate, request: GenerateRequest) -> Ballot:
    """The ballot of a candidate of ours or of a peer's."""
    question = answers.question_of(request.messages)
    return answers.ballot(candidate, request.strategy, question=question, json_schema=request.params.json_schema)
