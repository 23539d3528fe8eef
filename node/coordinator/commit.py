"""The end of a turn: it is kept in its topic's log before anybody is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace

from node import tracing, wire
from node.coordinator import topics
from node.coordinator.plan import Plan
from node.errors import ConclaveError
from node.mesh.peer import Peer
from node.types import GenerateResult, Version
from node.v1 import vote_pb2

log = logging.getLogger(__name__)

DECIDE_TIMEOUT_S = 2.0


async def keep(plan: Plan, result: GenerateResult, span: tracing.Span) -> tuple[GenerateResult, Collection[str]]:
    """Keep an answer of a topic, here and on peers: the answer with its version, and the nodes that are sent the turn.
    An answer of no topic passes."""
    p, topic = plan.place, result.topic
    if not topic:
        return result, ()
    if p.replicator is None:
        held = p.store.version(topic)
        version = Version(held.epoch, held.turn + 1, p.id)
        await p.store.add(topic, topics.entry(p.store, plan.request, result, version, plan.parent))
        p.store.add_replica(topic, version, p.id)
        return replace(result, version=version), ()
    version = p.replicator.next_version(topic)
    kept_by = p.replicator.holders(topic)
    with span.block("append"):
        made = topics.entry(p.store, plan.request, result, version, plan.parent)
        warnings = await p.replicator.keep(topic, made)
    outcome = replace(result.outcome, warnings=(*result.outcome.warnings, *warnings))
    return replace(result, version=version, outcome=outcome), kept_by


def tell(plan: Plan, result: GenerateResult, kept_by: Collection[str], span: tracing.Span) -> None:
    """Tell who took part the outcome, in the background: the client does not wait for them. Who keeps the topic has it
    with the turn."""
    if not result.topic:
        return
    news = vote_pb2.DecideRequest(
        request_id=result.request_id,
        topic=result.topic,
        version=wire.version_pb(result.version),
        winner=result.outcome.winner,
    )
    for member in plan.lineup.members.values():
        if member.peer is not None and member.id not in kept_by:
            task = asyncio.create_task(_decide(member.peer, news, span))
            plan.place.background.add(task)
            task.add_done_callback(plan.place.background.discard)


async def _decide(peer: Peer, news: vote_pb2.DecideRequest, span: tracing.Span) -> None:
    try:
        with span.block("decide", {"conclave.node": peer.id}, tracing.CLIENT):
            await peer.decide(news, DECIDE_TIMEOUT_S)
    except ConclaveError as e:
        log.info("node %s was not told the outcome of %s: %s", peer.id, news.request_id, e)
