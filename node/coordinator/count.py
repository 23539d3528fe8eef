"""The count: news of the parts goes into the vote until that is decided."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from node.coordinator.account import Account
from node.coordinator.events import Event, Leads, Voted, Wishes
from node.coordinator.parts import Over, Parts
from node.coordinator.plan import Plan
from node.core.consensus import Vote, VoteState
from node.errors import InvalidRequest, Overloaded
from node.types import Ballot

# Peers that are alive and do not finish are waited for as long again, this many times, as this node took for its own
# candidates, and at least this long: without a deadline of the client's nothing else would end the wait.
PATIENCE = 3.0
PATIENCE_S = 30.0


async def count(plan: Plan, vote: Vote, parts: Parts, account: Account, wishes: Wishes) -> AsyncGenerator[Event, None]:
    """Feed the vote until it is decided, everyone is done, or the time is up; what is worth telling meanwhile. Raises
    ConclaveError where nobody is left who could answer."""
    patience: float | None = None
    while parts.running and vote.state() is VoteState.PENDING:
        try:
            # The engine ends its candidates at the same deadline; peers that hang are left behind here.
            news = await parts.next(min((t for t in (plan.deadline, patience) if t is not None), default=None))
        except TimeoutError:
            for node in parts.running:
                vote.lose(plan.shares[node], node, "did not finish in time")
            break
        events = account.see(news)
        if isinstance(news, Over):
            if news.error is None and _is_measure(plan, news):
                now = plan.place.clock()
                patience = now + max(PATIENCE_S, PATIENCE * (now - account.started))
            _over(plan, vote, account, news)
        elif isinstance(news, Ballot) and vote.add(news) is None:
            if plan.place.id in parts.running:
                plan.place.local.engine.expect(plan.job, vote.missing)
            events = [Voted(news), *(_leader(vote) if wishes.leader else ())]
        for event in events:
            yield event
    await parts.stop_rest()
    # What finished while the vote was being decided was spent, and is not counted.
    for news in parts.rest():
        for event in account.see(news):
            yield event


def _is_measure(plan: Plan, news: Over) -> bool:
    """Whether a part says how long others may take: ours, or anyone's where we have none."""
    return news.node == plan.place.id or not plan.takes_part


def _over(plan: Plan, vote: Vote, account: Account, news: Over) -> None:
    """Count a part's missing candidates as lost. Raises what it failed with where nobody else could answer, or where
    everybody else would say the same."""
    error = news.error
    alone = len(plan.shares) == 1 and not vote.ballots
    if error is not None and (alone or (news.node == plan.place.id and isinstance(error, InvalidRequest))):
        raise error
    if _is_measure(plan, news):
        account.overloaded = isinstance(error, Overloaded)
    reason = error.message if error is not None else "ended without all of its candidates"
    vote.lose(plan.shares[news.node], news.node, reason)


def _leader(vote: Vote) -> tuple[Leads]:
    counted = vote.tally()
    first, total = counted.clusters[0], sum(c.weight for c in counted.clusters)
    return (Leads(first.medoid, first.weight / total if total > 0 else 0.0, counted.finished),)
