"""One turn: plan, every node's part, one count, an election, and the answer kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping

from node import tracing
from node.coordinator.account import Account
from node.coordinator.commit import keep, tell
from node.coordinator.count import count
from node.coordinator.election import elect
from node.coordinator.events import NO_WISHES, Event, Planned, Wishes
from node.coordinator.parts import Parts
from node.coordinator.place import Place
from node.coordinator.plan import plan
from node.engine import scheduler
from node.types import GenerateRequest, GenerateResult


class Turn:
    """One request on its way. `deadline` is in seconds of the place's clock."""

    def __init__(
        self,
        place: Place,
        request: GenerateRequest,
        deadline: float | None,
        wishes: Wishes = NO_WISHES,
        span: tracing.Span = tracing.OFF,
    ) -> None:
        self._place = place
        self._started = place.clock()
        self._deadline = deadline
        self._asked = request
        self._wishes = wishes
        self._span = span
        self._shares: Mapping[str, tuple[int, ...]] = {}

    async def run(self) -> AsyncGenerator[Event, None]:
        """The events of the turn, the result last. Raises ConclaveError."""
        place, wishes, span = self._place, self._wishes, self._span
        planned = plan(place, self._asked, self._deadline)
        self._shares = planned.shares
        vote = planned.vote()
        account = Account(place.clock, self._started, progress=wishes.progress)
        parts = Parts(planned, span, watch=wishes.peers)
        winner = scheduler.PROMPT_ONLY
        try:
            parts.start()
            # They begin while the plan is on its way to the client.
            yield Planned(planned.request.request_id, planned.request.strategy, tuple(planned.shares.items()))
            async with contextlib.aclosing(count(planned, vote, parts, account, wishes)) as events:
                async for event in events:
                    yield event
            result = await elect(planned, vote, account, parts.warnings)
            result, kept_by = await keep(planned, result, span)
            winner = result.outcome.winner
        finally:
            await parts.end()
            place.local.engine.commit(planned.job, winner)
        if result.topic and place.replicator is not None:
            place.replicator.changed(result.topic)
        tell(planned, result, kept_by, span)
        yield result

    def is_won_elsewhere(self, result: GenerateResult) -> bool:
        """Whether the answer of a topic was a peer's, so that its KV is not here."""
        return bool(result.topic) and result.outcome.winner not in self._shares.get(self._place.id, ())
