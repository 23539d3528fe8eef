"""The coordinator's events as pieces of choices: the same for every endpoint, streamed or not.

Where a request has one candidate, or asks for this model alone, texts go out as they are written. A vote's answer goes
out when it is decided: what was written before may not be the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from node.api.http.asked import Asked
from node.coordinator import Event, Leads, Planned, Progressed, Voted, Wrote
from node.core.tools import Splitter
from node.types import Candidate, FinishReason, GenerateResult, TokenLogprob, ToolCall


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a choice's text, with the log probabilities of its tokens where they were asked for."""

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


Delta = Said | Called | Ended | Answered | Planned | Wrote | Voted | Leads | Progressed


class _Choice:
    """One choice on its way out."""

    def __init__(self, index: int, asked: Asked) -> None:
        self._index = index
        self._splitter = Splitter(asked.request.tools) if asked.request.tools else None
        self._most = 1 if asked.one_call else None
        self._has_begun = False
        self._said = ""
        self._calls = 0
        self.is_over = False

    def write(self, event: Wrote) -> Iterator[Delta]:
        """More text of its candidate."""
        self._has_begun = True
        if self._splitter is None:
            self._said += event.text
            yield Said(self._index, event.text, event.logprobs)
        else:
            text, calls = self._splitter.feed(event.text)
            yield from self._pieces(text, calls, event.logprobs)

    def end(self, candidate: Candidate) -> Iterator[Delta]:
        """Its candidate as it ended: what is missing of it."""
        if self.is_over:
            return
        self.is_over = True
        if not self._has_begun:
            yield from self._pieces(candidate.text, candidate.tool_calls, candidate.logprobs)
        elif self._splitter is not None:
            yield from self._pieces(*self._splitter.finish())
        elif rest := candidate.text.removeprefix(self._said) if candidate.text.startswith(self._said) else "":
            yield Said(self._index, rest)  # of a peer, whose ballot counts and not what it let us watch
        yield Ended(self._index, candidate)

    def _pieces(
        self, text: str, calls: tuple[ToolCall, ...], logprobs: tuple[TokenLogprob, ...] = ()
    ) -> Iterator[Delta]:
        if text or logprobs:
            yield Said(self._index, text, logprobs)
        for call in calls:
            if self._most is None or self._calls < self._most:
                yield Called(self._index, self._calls, call)
                self._calls += 1


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
    found = sorted(result.candidates, key=lambda c: (asked.is_vote and c.id != result.outcome.winner, c.id))
    return tuple(found[: asked.choices])


def reason(candidate: Candidate) -> str:
    """Why a choice ended, in OpenAI's words."""
    if candidate.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
        return "length"
    return candidate.finish_reason.value
