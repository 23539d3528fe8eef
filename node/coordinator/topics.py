"""A turn as an entry of its topic's log, and an answer from the log for a request that comes again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from node.core import thoughts
from node.core.log import Entry, Reply
from node.errors import InvalidRequest, NotFound
from node.store import Store
from node.types import (
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Message,
    Outcome,
    Strategy,
    Timings,
    Usage,
    Version,
)


def entry(store: Store, request: GenerateRequest, result: GenerateResult, version: Version, parent: Version) -> Entry:
    """The log's entry for an answered request, whose `messages` are the whole conversation: what it adds to the topic,
    or all of it where it does not go on from what is held.

    `parent` is the version that was held when the turn began. If another turn came in meanwhile, that one becomes a
    branch: as the past of this one, which knows nothing of it, it would be said nowhere any more.
    """
    whole = (*request.messages, Message("assistant", result.text, result.tool_calls))
    held = _held(store, request.topic, parent)
    goes_on = len(held) < len(whole) and _said(whole[: len(held)]) == _said(held)
    o = result.outcome
    return Entry(
        version,
        parent,
        whole[len(held) :] if goes_on else whole,
        anew=not goes_on or not held,
        tokens=result.usage.prompt + result.usage.completion,
        request_id=result.request_id,
        reply=Reply(
            result.finish_reason.value,
            o.strategy.value,
            o.winner,
            o.confidence,
            o.margin,
            o.planned,
            o.finished,
            result.usage.prompt,
            result.usage.completion,
        ),
        made_ms=int(time.time() * 1e3),
    )


def _said(conversation: Sequence[Message]) -> list[Message]:
    """A conversation without what was thought: clients send it back so, and it is the same."""
    return [replace(m, content=thoughts.answer(m.content)) if m.role == "assistant" else m for m in conversation]


def _held(store: Store, topic: str, version: Version) -> tuple[Message, ...]:
    """The conversation up to a version; empty if that is not here (any more)."""
    try:
        log = store.log(topic)
    except NotFound:
        return ()
    return log.conversation(version) if log.get(version) is not None else ()


def again(store: Store, request: GenerateRequest) -> GenerateResult | None:
    """The answer that a request got before, here or on a node that is gone; None if it got none. What is left of its
    vote is the outcome in short. Raises InvalidRequest if its id was another request's."""
    found = store.answered(request.request_id)
    if found is None:
        return None
    name, said = found
    conversation = store.log(name).conversation(said.version)
    tails = (request.messages, request.said)
    if name != request.topic or not any(_said(conversation[-1 - len(t) : -1]) == _said(t) for t in tails):
        raise InvalidRequest(
            f"request_id {request.request_id!r} was used for another request: an id belongs to one request"
        )
    answer, reply = conversation[-1], said.reply
    outcome = Outcome(
        Strategy(reply.strategy),
        reply.winner,
        reply.confidence,
        reply.margin,
        (),
        (),
        False,
        reply.planned,
        reply.finished,
        warnings=("answered before: this is the answer that was kept",),
    )
    return GenerateResult(
        answer.content,
        FinishReason(reply.finish_reason),
        name,
        said.version,
        outcome,
        (),
        {},
        Usage(reply.prompt_tokens, 0, reply.completion_tokens, 0),
        Timings(),
        request.request_id,
        answer.tool_calls,
    )
