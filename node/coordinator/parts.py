"""The parts of a turn, one a node, each a task. What they find comes in one queue, as news."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from node import tracing
from node.coordinator import remote
from node.coordinator.events import Counted, Wrote
from node.coordinator.lineup import Member
from node.coordinator.local import VOTING, ballot
from node.coordinator.plan import Plan
from node.core import consensus
from node.engine import scheduler
from node.errors import BackendError, ConclaveError, PeerUnavailable
from node.mesh.peer import Peer
from node.types import Ballot
from node.v1 import vote_pb2

log = logging.getLogger(__name__)

# How long a turn waits for parts that it has cancelled: a decode step, to learn what was spent. Then it goes on.
STOP_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Over:
    """A node's part of a turn ended, with or without an error."""

    node: str
    error: ConclaveError | None


News = Ballot | Counted | Wrote | Over | scheduler.Event
_Work = Callable[[], Coroutine[None, None, None]]


class Parts:
    """The parts of one turn. `running` are the nodes whose end has not been told yet; with `watch`, peers' candidates
    come as they are written. Whoever starts them awaits `end`."""

    def __init__(self, plan: Plan, span: tracing.Span = tracing.OFF, *, watch: bool = False) -> None:
        self._plan = plan
        self._span = span
        self._watch = watch
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.running: set[str] = set()
        self.warnings: list[str] = []

    def start(self) -> None:
        """Begin on every node."""
        plan = self._plan
        for member in plan.lineup.members.values():
            peer = member.peer
            work = self._run_local if peer is None else partial(self._run_peer, peer, member)
            self._tasks[member.id] = asyncio.create_task(self._guard(member.id, work))
        self.running = set(self._tasks)

    async def next(self, until: float | None) -> News:
        """The next news. Raises TimeoutError if there is none until that second of the place's clock."""
        news = await self._waited(until) if self._news.empty() else self._news.get_nowait()
        if isinstance(news, Over):
            self.running.discard(news.node)
        return news

    async def _waited(self, until: float | None) -> News:
        left = None if until is None else max(until - self._plan.place.clock(), 0.05)
        try:
            # Not wait_for: before Python 3.12 it may swallow the cancellation of a client that leaves.
            async with asyncio.timeout(left):
                return await self._news.get()
        except TimeoutError:
            if self._news.empty():
                raise
            return self._news.get_nowait()  # it came just in time

    async def stop_rest(self) -> None:
        """Cancel what can no longer change the result. Our own engine says what it had spent; peers just stop."""
        plan, ours = self._plan, self._plan.place.id
        for node in self.running:
            if node == ours:
                plan.place.local.engine.cancel(plan.job)
            else:
                self._tasks[node].cancel()
        if ours in self.running:
            left = plan.left(of_margin=0.5)
            await _ended([self._tasks[ours]], STOP_TIMEOUT_S if left is None else min(STOP_TIMEOUT_S, max(left, 0.05)))

    def rest(self) -> Iterator[News]:
        """News that nobody waited for."""
        while not self._news.empty():
            yield self._news.get_nowait()

    async def end(self) -> None:
        """Cancel everything, and wait, but not for ever, until it has cleaned up."""
        for task in self._tasks.values():
            task.cancel()
        await _ended(self._tasks.values())
        # What a cancelled task raised holds its frames, and they what they work on, which would hold the task.
        self._tasks.clear()

    async def _guard(self, node: str, work: _Work) -> None:
        """Run one node's part; whatever ends it is news, so that nobody waits for a part that is over."""
        error: ConclaveError | None = PeerUnavailable("its part was cancelled")
        try:
            await work()
            error = None
        except ConclaveError as e:
            error = e
        except Exception as e:  # a defect of ours in one node's part must not leave the others waiting
            log.exception("the part of node %s failed", node)
            why = f"internal error: {type(e).__name__}; the log of node {self._plan.place.id} has more"
            error = BackendError(why)
        finally:
            self._news.put_nowait(Over(node, error))

    async def _run_local(self) -> None:
        plan, request = self._plan, self._plan.request
        mine = plan.shares[plan.place.id]
        ballots: list[Ballot] = []
        wave = plan.wave(plan.place.id)
        events = plan.place.local.run(plan.job, request, mine, plan.deadline, wave, self._span)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, scheduler.Done) and event.candidate.finish_reason in VOTING:
                    ballots.append(ballot(event.candidate, request))
                    self._news.put_nowait(ballots[-1])
                elif not isinstance(event, scheduler.Ended | scheduler.Failed):
                    self._news.put_nowait(event)
        self._news.put_nowait(Counted(consensus.tally(ballots, request.strategy, len(mine))))

    @cached_property
    def _wish(self) -> vote_pb2.PollRequest:
        """What every peer is asked: made where there is one, as it holds all that was said."""
        return remote.wish(self._plan.request, self._plan.place.id, texts=self._watch)

    async def _run_peer(self, peer: Peer, member: Member) -> None:
        left = self._plan.left()
        timeout = None if left is None else max(left, 0.001)
        events = remote.run(peer, member, self._plan.request, self._wish, timeout, self._plan.wave(peer.id))
        values = {"conclave.node": peer.id, "conclave.candidates.planned": len(member.candidates)}
        with self._span.block("poll", values, tracing.CLIENT):
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, str):
                        self.warnings.append(event)
                    else:
                        self._news.put_nowait(event)


async def _ended(tasks: Collection[asyncio.Task[None]], timeout_s: float = STOP_TIMEOUT_S) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
