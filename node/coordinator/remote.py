"""A peer's local phase: what is asked of it, and its ballots, each checked before it counts.

A peer's candidates are believed as text only: keys, weights and qualities are made here from the text, and what breaks
the rules (ids that were not asked for, votes cast twice, sizes, calls of tools that nobody offered) ends the peer's
part, so that it costs the rest of its ballots and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from node import wire
from node.coordinator.events import Wrote
from node.coordinator.lineup import Member
from node.coordinator.local import VOTING, ballot, with_calls
from node.core import consensus, tools
from node.errors import InvalidRequest
from node.mesh.peer import Peer
from node.types import Ballot, Candidate, FinishReason, GenerateRequest, SamplingParams, TokenLogprob
from node.v1 import types_pb2, vote_pb2

# The most text that a peer may call one token, far above what vocabularies have, and the most for a whole candidate.
MAX_TOKEN_BYTES = 256
MAX_TEXT_BYTES = 1 << 20


def wish(request: GenerateRequest, coordinator: str, *, texts: bool) -> vote_pb2.PollRequest:
    """What is asked of every peer; candidates, wave and fingerprint are each one's own."""
    return vote_pb2.PollRequest(
        request_id=request.request_id,
        topic=request.topic,
        messages=[wire.message_pb(m) for m in request.messages],
        tools=[wire.tool_pb(t) for t in request.tools],
        params=wire.params_pb(request.params),
        strategy=request.strategy.value,
        coordinator=coordinator,
        texts=texts,
    )


async def run(
    peer: Peer,
    member: Member,
    request: GenerateRequest,
    of_all: vote_pb2.PollRequest,
    timeout_s: float | None,
    wave: int = 0,
) -> AsyncGenerator[Ballot | Wrote | str, None]:
    """The ballots of a member, our peer, as they come; last, a warning if its tally does not add up with them. Raises
    ConclaveError.

    `of_all` is its `wish`. With texts also what its candidates write, for people to watch: what counts is the ballot.
    """
    ids = member.candidates
    asked = vote_pb2.PollRequest(candidates=ids, wave=wave, fingerprint=member.fingerprint)
    asked.MergeFrom(of_all)
    room = dict.fromkeys(ids, most_bytes(request)) if asked.texts else {}
    ballots: dict[int, Ballot] = {}
    async with contextlib.aclosing(peer.poll(asked, timeout_s)) as events:
        async for event in events:
            sent, tally = _told(event)
            for each in sent:
                candidate = wire.candidate(each.candidate, peer.id, member.model)
                if candidate.id not in ids or candidate.id in ballots:
                    raise InvalidRequest(f"it sent candidate {candidate.id}, which it was not asked for or had sent")
                ballots[candidate.id] = ballot(checked(candidate, request), request)
                yield ballots[candidate.id]
            if event.HasField("token"):
                said = event.token
                left = room.get(said.candidate_id, 0) - len(said.text.encode())
                # What nobody asked for, what comes after its ballot and what is too long is not shown.
                if said.candidate_id not in ballots and left >= 0 and said.text:
                    room[said.candidate_id] = left
                    yield Wrote(said.candidate_id, said.text)
            if tally is not None:  # with the last event, by contract
                if problem := _problem(tally, request, ballots):
                    yield f"the tally of node {peer.id} was not used: {problem}"
                return


def _told(event: vote_pb2.PollResponse) -> tuple[Sequence[types_pb2.Ballot], types_pb2.Tally | None]:
    """The ballots of an event, and the tally if it has it."""
    if event.HasField("ballots"):
        return event.ballots.ballots, event.ballots.tally if event.ballots.HasField("tally") else None
    return [event.ballot] if event.HasField("ballot") else [], event.tally if event.HasField("tally") else None


def checked(candidate: Candidate, request: GenerateRequest) -> Candidate:
    """A peer's candidate, within bounds and with its calls read as ours are. Raises InvalidRequest."""
    which = f"it sent candidate {candidate.id}"
    if candidate.finish_reason not in VOTING:
        raise InvalidRequest(f"{which}, which did not finish ({candidate.finish_reason})")
    size = sum(len(t.encode()) for c in candidate.tool_calls for t in (c.id, c.name, c.arguments))
    size += len(candidate.text.encode())
    if size > most_bytes(request):
        raise InvalidRequest(f"{which} of {size} bytes, more than {request.params.max_tokens} tokens can be")
    if not tools.accepted(candidate.tool_calls, request.tools):
        raise InvalidRequest(f"{which} with calls of tools that were not offered")
    tokens, logprobs = min(candidate.tokens, request.params.max_tokens), _logprobs(candidate, request.params)
    stopped_by = candidate.stopped_by if candidate.stopped_by in request.params.stop else ""
    if (tokens, logprobs, stopped_by) != (candidate.tokens, candidate.logprobs, candidate.stopped_by):
        candidate = replace(candidate, tokens=tokens, logprobs=logprobs, stopped_by=stopped_by)
    if candidate.tool_calls:
        return replace(candidate, finish_reason=FinishReason.TOOL_CALLS)
    if candidate.finish_reason is FinishReason.TOOL_CALLS:
        candidate = replace(candidate, finish_reason=FinishReason.STOP)
    return with_calls(candidate, request)


def most_bytes(request: GenerateRequest) -> int:
    """The most bytes that a peer may send as one candidate's text."""
    return min(MAX_TEXT_BYTES, MAX_TOKEN_BYTES * (request.params.max_tokens + 1))


def _logprobs(candidate: Candidate, params: SamplingParams) -> tuple[TokenLogprob, ...]:
    """A peer's log probabilities, if they were asked for. Raises InvalidRequest."""
    if not params.logprobs:
        return ()
    if len(candidate.logprobs) > params.max_tokens:
        raise InvalidRequest(f"it sent candidate {candidate.id} with {len(candidate.logprobs)} log probabilities")
    for token in candidate.logprobs:
        if len(token.top) > params.top_logprobs:
            raise InvalidRequest(f"it sent candidate {candidate.id} with {len(token.top)} tokens in place of one")
        if any(max(len(t.token), len(t.bytes)) > MAX_TOKEN_BYTES for t in (token, *token.top)):
            raise InvalidRequest(f"it sent candidate {candidate.id} with a token of more than {MAX_TOKEN_BYTES} bytes")
    return candidate.logprobs


def _problem(counted: types_pb2.Tally, request: GenerateRequest, ballots: dict[int, Ballot]) -> str | None:
    """Ballots are what counts; a tally that does not add up with them is worth a warning."""
    if counted.strategy != request.strategy:
        return f"it was counted by {counted.strategy[:20]!r}, not by {request.strategy}"
    try:
        return consensus.check(wire.tally(counted, ballots), list(ballots.values()))
    except InvalidRequest as e:
        return e.message
