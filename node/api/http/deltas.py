"""The coordinator's events as pieces of choices: the same for every endpoint, streamed or not.

Where a request has one candidate, or asks for this model alone, texts go out as they are written. A vote's answer goes
out when it is decided: what was written before may not be the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from node.api.http.asked import Asked
from node.coordinator import Event, Leads, Planned, Progressed, Voted, Wrote
from node.core import thoughts
from node.core.tools import Splitter
from node.types import Candidate, FinishReason, GenerateResult, TokenLogprob, ToolCall


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a choice's text, with the log probabilities of its tokens where they were asked for."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what a choice's model thinks before it answers, which is no part of the text."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """A choice asks for a call; `number` counts the calls of the choice."""

    choice: int
    number: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete."""

    choice: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Answered:
    """Last: the result, and the candidates that are the choices, in their order."""

    result: GenerateResult
    choices: tuple[Candidate, ...]


Delta = Said | Thought | Called | Ended | Answered | Planned | Wrote | Voted | Leads | Progressed


class _Choice:
    """One choice on its way out."""

    def __init__(self, index: int, asked: Asked) -> None:
        self._index = index
        self._thoughts = None if asked.request.is_raw else thoughts.Splitter()
        self._splitter = Splitter(asked.request.tools) if asked.request.tools else None
        self._most = 1 if asked.one_call else None
        self._written: list[str] = []
        self._calls = 0
        self.is_over = False

    def write(self, event: Wrote) -> Iterator[Delta]:
        """More text of its candidate."""
        self._written.append(event.text)
        thought, said = self._thoughts.feed(event.text) if self._thoughts else ("", event.text)
        yield from self._told(thought, said, event.logprobs)

    def end(self, candidate: Candidate) -> Iterator[Delta]:
        """Its candidate as it ended: what is missing of it."""
        if self.is_over:
            return
        self.is_over = True
        if not self._written:
            thought, said = thoughts.split(candidate.text) if self._thoughts else ("", candidate.text)
            if thought:
                yield Thought(self._index, thought)
            yield from self._pieces(said, candidate.tool_calls, candidate.logprobs)
        else:
            yield from self._rest(candidate)
        yield Ended(self._index, candidate)

    def _rest(self, candidate: Candidate) -> Iterator[Delta]:
        written = "".join(self._written)
        if self._splitter is None and candidate.text.startswith(written) and len(candidate.text) > len(written):
            # Of a peer, whose ballot counts and not what it let us watch.
            rest = candidate.text[len(written) :]
            yield from self._told(*(self._thoughts.feed(rest) if self._thoughts else ("", rest)))
        if self._thoughts:
            yield from self._told(*self._thoughts.finish())
        if self._splitter is not None:
            yield from self._pieces(*self._splitter.finish())

    def _told(self, thought: str, said: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Iterator[Delta]:
        """A piece with the log probabilities of its tokens; where it ends a thought, they go with the answer."""
        if thought:
            yield Thought(self._index, thought, () if said else logprobs)
        if self._splitter is None:
            yield from self._pieces(said, (), () if thought and not said else logprobs)
        elif said or (logprobs and not thought):
            yield from self._pieces(*self._splitter.feed(said), logprobs)

    def _pieces(
        self, text: str, calls: tuple[ToolCall, ...], logprobs: tuple[TokenLogprob, ...] = ()
    ) -> Iterator[Delta]:
        if text or logprobs:
            yield Said(self._index, text, logprobs)
        for call in calls:
            if self._most is None or self._calls < self._most:
                yield Called(self._index, self._calls, call)
                self._calls += 1


@dataclass(slots=True)
class Spoken:
    """All of a choice. `calls` are what its `text` asks for, which has them no more."""

    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


async def whole(pieces: AsyncGenerator[Delta, None]) -> tuple[Answered, list[Spoken]]:
    """An answer that nobody reads as it is written: how it was found, and its choices."""
    spoken: dict[int, Spoken] = {}
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Answered):
                return piece, [spoken.get(i, Spoken()) for i in range(len(piece.choices))]
            if isinstance(piece, Said | Thought | Called):
                choice = spoken.setdefault(piece.choice, Spoken())
                if isinstance(piece, Called):
                    choice.calls.append(piece.call)
                    continue
                choice.logprobs += piece.logprobs
                if isinstance(piece, Said):
                    choice.text += piece.text
                else:
                    choice.thought += piece.text
    raise AssertionError("an answer without an end")  # `deltas` raises what it failed with


async def deltas(events: AsyncGenerator[Event, None], asked: Asked, here: str) -> AsyncGenerator[Delta, None]:
    """What the answer to a request is made of. `here` is this node's id. Leaving it stops all candidates."""
    choices = [_Choice(i, asked) for i in range(asked.choices)]
    by_id: dict[int, _Choice] = {}
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Wrote):
                if (choice := by_id.get(event.candidate)) is not None:
                    for delta in choice.write(event):
                        yield delta
            elif isinstance(event, Voted):
                candidate = event.ballot.candidate
                if (choice := by_id.get(candidate.id)) is not None:
                    for delta in choice.end(candidate):
                        yield delta
            elif isinstance(event, Planned):
                if streams(event, asked, here):
                    by_id = dict(enumerate(choices, 1))
            elif isinstance(event, GenerateResult):
                chosen = chosen_of(event, asked)
                for index, candidate in enumerate(chosen):
                    choice = by_id.get(candidate.id) if by_id else choices[index]
                    for delta in choice.end(candidate) if choice else ():
                        yield delta
                yield Answered(event, chosen)
                return
            if isinstance(event, Leads | Progressed) or (asked.events and isinstance(event, Wrote | Voted | Planned)):
                yield event


def streams(plan: Planned, asked: Asked, here: str) -> bool:
    """Whether each candidate of a plan is a choice, so that what it writes is the answer."""
    ids = [(node, id) for node, share in plan.shares for id in share]
    is_seen = asked.wishes.peers or all(node == here for node, _ in ids)
    return len(ids) == asked.choices and is_seen and (not asked.is_vote or len(ids) == 1)


def chosen_of(result: GenerateResult, asked: Asked) -> tuple[Candidate, ...]:
    """The candidates that are the choices: of a vote the winner first, else as they are numbered."""
    if not result.candidates:  # answered before: of its vote nothing is left but the answer
        o, written = result.outcome, result.usage.completion
        kept = Candidate(o.winner, "", result.text, written, 0.0, result.finish_reason, 0.0, result.tool_calls)
        return (kept,)
    found = sorted(result.candidates, key=lambda c: (asked.is_vote and c.id != result.outcome.winner, c.id))
    return tuple(found[: asked.choices])


def reason(candidate: Candidate) -> str:
    """Why a choice ended, in OpenAI's words."""
    if candidate.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
        return "length"
    return candidate.finish_reason.value
