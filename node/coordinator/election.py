"""From the ballots to the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from node import metrics
from node.coordinator import lineup
from node.coordinator.account import Account
from node.coordinator.local import ballot
from node.coordinator.plan import Plan
from node.core import thoughts
from node.core.consensus import Vote, VoteState
from node.errors import ConclaveError, DeadlineExceeded, NoQuorum, Overloaded
from node.types import FinishReason, GenerateResult, Outcome, Strategy, Version

log = logging.getLogger(__name__)

# Mean-pooled hidden states of a language model lie closer together than a sentence embedder's vectors. On the bundled
# model a greeting and another have cosines of 0.5, one fact told with two names 0.99: no threshold tells agreement from
# contradiction, so it is high, and what is left apart is at least not falsely counted together.
HIDDEN_STATE_THRESHOLD = 0.95


async def elect(plan: Plan, vote: Vote, account: Account, warnings: Sequence[str]) -> GenerateResult:
    """The answer that was voted, not yet kept in its topic. Raises ConclaveError if too few candidates finished."""
    strict = plan.place.strict
    if vote.ballots and vote.state() is not VoteState.LOST:
        return await _elected(plan, vote, account, warnings)
    is_late = plan.is_late
    if is_late and account.cut and not vote.ballots and not strict:
        return await _late(plan, vote, account, warnings)
    lost = "; ".join(f"{loss.node}: {loss.reason}" for loss in vote.lost())
    if account.overloaded and not vote.ballots:
        raise Overloaded(f"no node has room for the request ({lost}): try again later")
    if is_late and not strict:
        raise DeadlineExceeded(f"no candidate finished in time ({lost}): allow more time")
    raise NoQuorum(f"{len(vote.ballots)} of {plan.count} candidates finished, too few ({lost}): try again")


async def _late(plan: Plan, vote: Vote, account: Account, warnings: Sequence[str]) -> GenerateResult:
    """Nothing finished in time: the best of what was cut off."""
    cut = Vote(plan.request.strategy, range(1, plan.count + 1), early=False)
    for candidate in account.cut:
        # Cancelled or expired: at the deadline it is chance which of the two came first.
        cut.add(ballot(replace(candidate, finish_reason=FinishReason.DEADLINE), plan.request))
    result = await _elected(plan, cut, account, (*warnings, "the deadline cut all candidates off"))
    return replace(result, outcome=replace(result.outcome, finished=0, quorum=False, lost=vote.lost()))


async def _elected(plan: Plan, vote: Vote, account: Account, warnings: Sequence[str]) -> GenerateResult:
    request = plan.request
    vectors = await _vectors(plan, vote)
    outcome = vote.outcome(vectors=vectors, threshold=HIDDEN_STATE_THRESHOLD, warnings=tuple(warnings))
    _measure(outcome)
    outcome = replace(outcome, models=plan.lineup.models)
    lineup.learn(plan.place, plan.lineup, vote, outcome)
    winner = next(b.candidate for b in vote.ballots if b.candidate.id == outcome.winner)
    return GenerateResult(
        text=winner.text,
        finish_reason=winner.finish_reason,
        topic=request.topic,
        version=Version(),
        outcome=outcome,
        candidates=tuple(b.candidate for b in vote.ballots),
        answers={b.candidate.id: b.key for b in vote.ballots},
        usage=account.usage(winner),
        timings=account.timings(),
        request_id=request.request_id,
        tool_calls=winner.tool_calls,
    )


async def _vectors(plan: Plan, vote: Vote) -> dict[int, Sequence[float]] | None:
    """Embeddings for `similarity`; None where there are none in time, which the outcome says."""
    if plan.request.strategy is not Strategy.SIMILARITY or len({b.key for b in vote.ballots}) < 2:
        return {}
    try:
        async with asyncio.timeout(plan.left(of_margin=0.5)):
            found = await plan.place.local.engine.embed([thoughts.answer(b.candidate.text) for b in vote.ballots])
    except (ConclaveError, TimeoutError) as e:
        log.info("request %s has no embeddings: %r", plan.request.request_id, e)
        return None
    return {b.candidate.id: v for b, v in zip(vote.ballots, found, strict=True)}


def _measure(outcome: Outcome) -> None:
    """Tell the metrics how a vote ended."""
    if outcome.planned < 2:
        return
    ended = "no_quorum" if not outcome.quorum else "disagreed" if outcome.disagreement else "agreed"
    metrics.VOTES.labels(outcome.strategy.value, ended).inc()
    lost = sum(len(loss.candidates) for loss in outcome.lost)
    metrics.LOST_CANDIDATES.inc(lost)
    if outcome.stopped_early:
        metrics.EARLY_STOPS.inc()
        metrics.SAVED_CANDIDATES.inc(max(outcome.planned - outcome.finished - lost, 0))
