"""One turn: plan, local phase and peers' ballots, one vote, commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial

from node import metrics, tracing, wire
from node.coordinator import lineup, remote, topics
from node.coordinator.events import NO_WISHES, Counted, Event, Leads, Planned, Progressed, Voted, Wishes, Wrote
from node.coordinator.lineup import Lineup, Member
from node.coordinator.local import VOTING, ballot, written
from node.coordinator.place import Place
from node.core import answers, consensus, placement
from node.core.consensus import Vote, VoteState
from node.core.quality import visible
from node.engine import scheduler
from node.errors import (
    BackendError,
    ConclaveError,
    DeadlineExceeded,
    InvalidRequest,
    NoQuorum,
    NotFound,
    Overloaded,
    PeerUnavailable,
)
from node.mesh.peer import Peer
from node.types import (
    Ballot,
    Candidate,
    EarlyStop,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Outcome,
    Strategy,
    Timings,
    Usage,
    Version,
)
from node.v1 import vote_pb2

log = logging.getLogger(__name__)

# Left of a client's deadline for electing and for the way back, so that the answer arrives and not the deadline.
DEADLINE_MARGIN_S = 0.25
# Mean-pooled hidden states of a language model lie closer together than a sentence embedder's vectors. On the bundled
# model a greeting and another have cosines of 0.5, one fact told with two names 0.99: no threshold tells agreement from
# contradiction, so it is high, and what is left apart is at least not falsely counted together.
HIDDEN_STATE_THRESHOLD = 0.95
DECIDE_TIMEOUT_S = 2.0
# How long a turn waits for parts that it has cancelled: a decode step, to learn what was spent. Then it goes on.
STOP_TIMEOUT_S = 0.5
# Peers that are alive and do not finish are waited for as long again, this many times, as this node took for its own
# candidates, and at least this long: without a deadline of the client's nothing else would end the wait.
PATIENCE = 3.0
PATIENCE_S = 30.0
MAX_LOGPROBS = 500_000  # of an answer; some 30 bytes each, and a message is 64 MiB at most


@dataclass(frozen=True, slots=True)
class _Over:
    """A node's part of a turn ended, with or without an error."""

    node: str
    error: ConclaveError | None


_News = Ballot | Counted | Wrote | _Over | scheduler.Event
_Work = Callable[[], Coroutine[None, None, None]]


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
        self._p = place
        self._started = place.clock()
        self._deadline = None if deadline is None else deadline - DEADLINE_MARGIN_S
        self._asked = request
        self._wishes = wishes
        self._span = span
        self._request = request
        self._events: asyncio.Queue[_News] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lineup = Lineup({}, {})
        self._shares: dict[str, tuple[int, ...]] = {}
        # An id of this attempt alone: an earlier one of the same request may still be ending in the engine.
        self._job = f"{place.id}/{request.request_id}/{secrets.token_hex(4)}"
        self._wish = vote_pb2.PollRequest()
        self._patience: float | None = None
        self._overloaded = False
        self._partial: list[Candidate] = []
        self._warnings: list[str] = []
        self._tokens = 0
        self._kept_by: set[str] = set()
        self._parent = Version()  # what is held of the topic when the turn begins
        self._prefilled: scheduler.Prefilled | None = None
        self._first_token: float | None = None

    async def run(self) -> AsyncGenerator[Event, None]:
        """The events of the turn, the result last."""
        request = self._prepare()
        self._lineup = lineup.lineup(self._p, request)
        self._shares = self._lineup.shares
        count = sum(map(len, self._shares.values()))
        _check_logprobs(request, count)
        vote = Vote(
            request.strategy,
            range(1, count + 1),
            adaptive=self._early_stop is EarlyStop.ADAPTIVE,
            early=self._early_stop is not EarlyStop.OFF,
            strict=self._p.strict,
            standings=self._lineup.standings,
        )
        winner = scheduler.PROMPT_ONLY
        try:
            self._start()
            # They begin while the plan is on its way to the client.
            yield Planned(request.request_id, request.strategy, tuple(self._shares.items()))
            async with contextlib.aclosing(self._collect(vote)) as events:
                async for event in events:
                    yield event
            result = await self._result(vote)
            winner = result.outcome.winner
        finally:
            for task in self._tasks.values():
                task.cancel()
            await _ended(self._tasks.values())
            self._p.local.engine.commit(self._job, winner)
        if request.topic and self._p.replicator is not None:
            self._p.replicator.changed(request.topic)
        self._tell(result)
        yield result

    def is_won_elsewhere(self, result: GenerateResult) -> bool:
        """Whether the answer of a topic was a peer's, so that its KV is not here."""
        return bool(result.topic) and result.outcome.winner not in self._shares.get(self._p.id, ())

    # ---- plan -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> GenerateRequest:
        """The request with its whole conversation, its strategy and its seed settled."""
        request = self._asked
        messages = request.messages
        self._parent = self._p.store.version(request.topic) if request.topic else Version()
        if request.append:
            topic = self._p.store.get(request.topic)
            if topic.version < request.parent:
                raise NotFound(
                    f"topic {request.topic!r} is known here up to turn {topic.version.turn}, not to turn "
                    f"{request.parent.turn}: send the whole conversation"
                )
            messages = topic.messages + messages
        params = request.params
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        strategy = answers.resolve(request.strategy, messages, request.tools, params.json_schema)
        self._request = replace(request, messages=messages, params=params, strategy=strategy)
        return self._request

    def _start(self) -> None:
        self._wish = remote.wish(self._request, self._p.id, texts=self._wishes.peers)
        parts: dict[str, _Work] = {
            member.id: self._run_local if member.peer is None else partial(self._run_peer, member.peer, member)
            for member in self._lineup.members.values()
        }
        self._tasks = {node: asyncio.create_task(self._guard(node, work)) for node, work in parts.items()}

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
            error = BackendError(f"internal error: {type(e).__name__}; the log of node {self._p.id} has more")
        finally:
            self._events.put_nowait(_Over(node, error))

    @property
    def _early_stop(self) -> EarlyStop:
        return self._request.early_stop or self._p.early_stop

    def _wave(self, node: str) -> int:
        planned = sum(map(len, self._shares.values()))
        return placement.wave(len(self._shares[node]), planned, self._request.strategy, self._early_stop)

    # ---- the two phases ---------------------------------------------------------------------------------------------

    async def _run_local(self) -> None:
        request, mine = self._request, self._shares[self._p.id]
        ballots: list[Ballot] = []
        wave = self._wave(self._p.id)
        events = self._p.local.run(self._job, request, mine, self._deadline, wave, self._span)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, scheduler.Done) and event.candidate.finish_reason in VOTING:
                    ballots.append(ballot(event.candidate, request))
                    self._events.put_nowait(ballots[-1])
                elif not isinstance(event, scheduler.Ended | scheduler.Failed):
                    self._events.put_nowait(event)
        self._events.put_nowait(Counted(consensus.tally(ballots, request.strategy, len(mine))))

    async def _run_peer(self, peer: Peer, member: Member) -> None:
        left = None if self._deadline is None else max(self._deadline - self._p.clock(), 0.001)
        wave = self._wave(peer.id)
        events = remote.run(peer, member, self._request, self._wish, left, wave)
        values = {"conclave.node": peer.id, "conclave.candidates.planned": len(member.candidates)}
        with self._span.block("poll", values, tracing.CLIENT):
            await self._take_in(events)

    async def _take_in(self, events: AsyncGenerator[Ballot | Wrote | str, None]) -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, str):
                    self._warnings.append(event)
                else:
                    self._events.put_nowait(event)

    async def _collect(self, vote: Vote) -> AsyncGenerator[Event, None]:
        """Feed the vote until it is decided, everyone is done, or the time is up."""
        running = set(self._tasks)
        while running and vote.state() is VoteState.PENDING:
            limits = [t for t in (self._deadline, self._patience) if t is not None]
            left = min(limits) - self._p.clock() if limits else None
            try:
                # The engine ends its candidates at the same deadline; peers that hang are left behind here.
                # Not wait_for: before Python 3.12 it may swallow the cancellation of a client that leaves.
                async with asyncio.timeout(None if left is None else max(left, 0.05)):
                    news = await self._events.get()
            except TimeoutError:
                if not self._events.empty():
                    continue  # it came just in time
                for node in running:
                    vote.lose(self._shares[node], node, "did not finish in time")
                break
            if isinstance(news, _Over):
                running.discard(news.node)
                self._over(vote, news)
            for event in self._take(vote, news):
                yield event
        await self._stop_rest(running)
        for event in self._drain():
            yield event

    def _over(self, vote: Vote, news: _Over) -> None:
        alone = len(self._shares) == 1 and not vote.ballots
        is_ours = news.node == self._p.id
        if news.error is not None and (alone or (is_ours and isinstance(news.error, InvalidRequest))):
            raise news.error
        if is_ours or self._p.id not in self._shares:
            self._overloaded = isinstance(news.error, Overloaded)
            if news.error is None:
                now = self._p.clock()
                self._patience = now + max(PATIENCE_S, PATIENCE * (now - self._started))
        reason = news.error.message if news.error is not None else "ended without all of its candidates"
        vote.lose(self._shares[news.node], news.node, reason)

    def _take(self, vote: Vote, news: _News) -> list[Event]:
        if isinstance(news, Ballot):
            self._tokens += news.candidate.tokens
            if vote.add(news) is not None:
                return []
            if self._p.id in self._shares:
                self._p.local.engine.expect(self._job, vote.missing)
            return [Voted(news), *self._leader(vote)]
        return self._observe(news)

    def _leader(self, vote: Vote) -> list[Event]:
        if not self._wishes.leader:
            return []
        counted = vote.tally()
        first, total = counted.clusters[0], sum(c.weight for c in counted.clusters)
        return [Leads(first.medoid, first.weight / total if total > 0 else 0.0, counted.finished)]

    def _observe(self, news: _News) -> list[Event]:
        """What is worth telling or counting of news that is no ballot."""
        if isinstance(news, Counted | Wrote):  # what our own candidates write comes as the engine's event
            return [news]
        if isinstance(news, scheduler.Text):
            if self._first_token is None:
                self._first_token = self._p.clock()
            return list(written(news))
        if isinstance(news, scheduler.Prefilling):
            return [Progressed(news.computed, news.cached, news.prompt)] if self._wishes.progress else []
        if isinstance(news, scheduler.Prefilled):
            self._prefilled = news
        elif isinstance(news, scheduler.Done):
            self._tokens += news.candidate.tokens
            if news.candidate.text:  # cut off: the best there is if nothing finishes in time
                self._partial.append(news.candidate)
        return []

    async def _stop_rest(self, running: set[str]) -> None:
        """Cancel what can no longer change the result. Our own engine says what it had spent; peers just stop."""
        for node in running:
            if node == self._p.id:
                self._p.local.engine.cancel(self._job)
            else:
                self._tasks[node].cancel()
        if self._p.id in running:
            timeout = STOP_TIMEOUT_S
            if self._deadline is not None:
                timeout = min(timeout, max(self._deadline + DEADLINE_MARGIN_S / 2 - self._p.clock(), 0.05))
            await _ended([self._tasks[self._p.id]], timeout)

    def _drain(self) -> list[Event]:
        out: list[Event] = []
        while not self._events.empty():
            news = self._events.get_nowait()
            if isinstance(news, Ballot):
                self._tokens += news.candidate.tokens  # finished while the vote was being decided: spent, not counted
            elif not isinstance(news, _Over):
                out += self._observe(news)
        return out

    # ---- the result -------------------------------------------------------------------------------------------------

    async def _result(self, vote: Vote) -> GenerateResult:
        if vote.ballots and vote.state() is not VoteState.LOST:
            return await self._elected(vote)
        late = self._deadline is not None and self._p.clock() >= self._deadline
        if late and self._partial and not vote.ballots and not self._p.strict:
            return await self._late_result(vote)
        lost = "; ".join(f"{loss.node}: {loss.reason}" for loss in vote.lost())
        if self._overloaded and not vote.ballots:
            raise Overloaded(f"no node has room for the request ({lost}): try again later")
        if late and not self._p.strict:
            raise DeadlineExceeded(f"no candidate finished in time ({lost}): allow more time")
        planned = vote.tally().planned
        raise NoQuorum(f"{len(vote.ballots)} of {planned} candidates finished, too few ({lost}): try again")

    async def _late_result(self, vote: Vote) -> GenerateResult:
        """Nothing finished in time: the best of what was cut off."""
        cut = Vote(self._request.strategy, range(1, vote.tally().planned + 1), early=False)
        for candidate in self._partial:
            # Cancelled or expired: at the deadline it is chance which of the two came first.
            cut.add(ballot(replace(candidate, finish_reason=FinishReason.DEADLINE), self._request))
        lost = vote.lost()
        result = await self._elected(cut, "the deadline cut all candidates off")
        return replace(result, outcome=replace(result.outcome, finished=0, quorum=False, lost=lost))

    async def _vectors(self, vote: Vote) -> dict[int, Sequence[float]] | None:
        """Embeddings for `similarity`; None where there are none in time, which the outcome says."""
        if self._request.strategy is not Strategy.SIMILARITY or len({b.key for b in vote.ballots}) < 2:
            return {}
        left = None if self._deadline is None else self._deadline + DEADLINE_MARGIN_S / 2 - self._p.clock()
        try:
            async with asyncio.timeout(left):
                found = await self._p.local.engine.embed([visible(b.candidate.text) for b in vote.ballots])
        except (ConclaveError, TimeoutError) as e:
            log.info("request %s has no embeddings: %r", self._request.request_id, e)
            return None
        return {b.candidate.id: v for b, v in zip(vote.ballots, found, strict=True)}

    async def _elected(self, vote: Vote, *warnings: str) -> GenerateResult:
        request, clock = self._request, self._p.clock
        vectors = await self._vectors(vote)
        outcome = vote.outcome(vectors=vectors, threshold=HIDDEN_STATE_THRESHOLD, warnings=(*self._warnings, *warnings))
        _count(outcome)
        outcome = replace(outcome, models=self._lineup.models)
        lineup.learn(self._p, self._lineup, vote, outcome)
        winner = next(b.candidate for b in vote.ballots if b.candidate.id == outcome.winner)
        prefilled = self._prefilled
        result = GenerateResult(
            text=winner.text,
            finish_reason=winner.finish_reason,
            topic=request.topic,
            version=Version(),
            outcome=outcome,
            candidates=tuple(b.candidate for b in vote.ballots),
            answers={b.candidate.id: b.key for b in vote.ballots},
            usage=Usage(
                prompt=prefilled.prompt if prefilled else 0,
                cached=prefilled.cached if prefilled else 0,
                completion=winner.tokens,
                candidates=self._tokens,
            ),
            timings=Timings(
                queue_ms=prefilled.queue_ms if prefilled else 0.0,
                prefill_ms=prefilled.prefill_ms if prefilled else 0.0,
                first_token_ms=(self._first_token - self._started) * 1e3 if self._first_token is not None else 0.0,
                total_ms=(clock() - self._started) * 1e3,
            ),
            request_id=request.request_id,
            tool_calls=winner.tool_calls,
        )
        return await self._commit(result) if request.topic else result

    async def _commit(self, result: GenerateResult) -> GenerateResult:
        """Keep the turn in the topic's log, here and on peers, before anybody is told of it."""
        p, topic = self._p, result.topic
        if p.replicator is None:
            held = p.store.version(topic)
            version = Version(held.epoch, held.turn + 1, p.id)
            await p.store.add(topic, topics.entry(p.store, self._request, result, version, self._parent))
            p.store.add_replica(topic, version, p.id)
            return replace(result, version=version)
        version = p.replicator.next_version(topic)
        self._kept_by = p.replicator.holders(topic)
        with self._span.block("append"):
            made = topics.entry(p.store, self._request, result, version, self._parent)
            warnings = await p.replicator.keep(topic, made)
        outcome = replace(result.outcome, warnings=(*result.outcome.warnings, *warnings))
        return replace(result, version=version, outcome=outcome)

    def _tell(self, result: GenerateResult) -> None:
        """Tell who took part the outcome, in the background: the client does not wait for them. Who keeps the topic has
        it with the turn."""
        if not result.topic:
            return
        news = vote_pb2.DecideRequest(
            request_id=result.request_id,
            topic=result.topic,
            version=wire.version_pb(result.version),
            winner=result.outcome.winner,
        )
        for member in self._lineup.members.values():
            if member.peer is not None and member.id not in self._kept_by:
                task = asyncio.create_task(self._decide(member.peer, news))
                self._p.background.add(task)
                task.add_done_callback(self._p.background.discard)

    async def _decide(self, peer: Peer, news: vote_pb2.DecideRequest) -> None:
        try:
            with self._span.block("decide", {"conclave.node": peer.id}, tracing.CLIENT):
                await peer.decide(news, DECIDE_TIMEOUT_S)
        except ConclaveError as e:
            log.info("node %s was not told the outcome of %s: %s", peer.id, news.request_id, e)


def _count(outcome: Outcome) -> None:
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


def _check_logprobs(request: GenerateRequest, candidates: int) -> None:
    """Raises InvalidRequest where log probabilities could make an answer that is too large to send."""
    params = request.params
    entries = candidates * params.max_tokens * (1 + params.top_logprobs)
    if params.logprobs and entries > MAX_LOGPROBS:
        raise InvalidRequest(
            f"{candidates} candidates of {params.max_tokens} tokens with {params.top_logprobs} top_logprobs are "
            f"{entries} log probabilities: at most {MAX_LOGPROBS}; ask for fewer candidates, max_tokens or top_logprobs"
        )


async def _ended(tasks: Collection[asyncio.Task[None]], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Wait, but not for ever, until cancelled tasks have cleaned up."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
