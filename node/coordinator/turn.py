"""One turn: plan, local phase and peers' ballots, one vote, commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from node import wire
from node.coordinator.events import Counted, Event, Planned, Voted, Wrote
from node.coordinator.local import VOTING, LocalPhase, with_calls
from node.core import answers, consensus, placement
from node.core.consensus import Vote, VoteState
from node.engine import scheduler
from node.errors import BackendError, ConclaveError, DeadlineExceeded, InvalidRequest, NoQuorum
from node.mesh.peer import Peer
from node.store import Store, Topic
from node.types import (
    Ballot,
    Candidate,
    EarlyStop,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Message,
    Scope,
    Strategy,
    Timings,
    Usage,
    Version,
)
from node.v1 import types_pb2, vote_pb2

log = logging.getLogger(__name__)

# Left of a client's deadline for electing and for the way back, so that the answer arrives and not the deadline.
DEADLINE_MARGIN_S = 0.25
DECIDE_TIMEOUT_S = 2.0
MAX_TEXT_BYTES = 1 << 20  # of one peer's candidate; far more than max_tokens can make


class Peers(Protocol):
    """What the coordinator needs of the mesh."""

    def peers(self) -> list[Peer]:
        """The peers that are alive."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where turns take place: this node's parts that every turn needs. `clock` gives monotonic seconds."""

    id: str
    local: LocalPhase
    mesh: Peers
    store: Store
    clock: Callable[[], float]
    strict: bool = False
    early_stop: EarlyStop = EarlyStop.ADAPTIVE
    background: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Over:
    """A node's part of a turn ended, with or without an error."""

    node: str
    error: ConclaveError | None


_News = Ballot | Counted | _Over | scheduler.Event
_Work = Coroutine[None, None, None]


class Turn:
    """One request on its way. `deadline` is in seconds of the place's clock."""

    def __init__(self, place: Place, request: GenerateRequest, deadline: float | None) -> None:
        self._p = place
        self._started = place.clock()
        self._deadline = None if deadline is None else deadline - DEADLINE_MARGIN_S
        self._asked = request
        self._request = request
        self._events: asyncio.Queue[_News] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._shares: dict[str, tuple[int, ...]] = {}
        self._partial: list[Candidate] = []
        self._warnings: list[str] = []
        self._tokens = 0
        self._prefilled: scheduler.Prefilled | None = None
        self._first_token: float | None = None
        self._topic: Topic | None = None

    async def run(self) -> AsyncGenerator[Event, None]:
        """The events of the turn, the result last."""
        request = self._prepare()
        participants = self._participants()
        count = request.candidates or placement.default_candidates(1 + len(participants))
        engine = self._p.local.engine
        me = placement.Participant(self._p.id, engine.decode_tokens_per_s, engine.free_sequences)
        others = [placement.Participant(p.id, p.info.decode_tokens_per_s, p.info.free_sequences) for p in participants]
        shares = placement.share(count, [me, *others])
        ids = iter(range(1, count + 1))
        self._shares = {node: tuple(next(ids) for _ in range(n)) for node, n in shares.items()}
        vote = Vote(
            request.strategy,
            range(1, count + 1),
            adaptive=self._p.early_stop is EarlyStop.ADAPTIVE,
            early=self._p.early_stop is not EarlyStop.OFF,
            strict=self._p.strict,
        )
        yield Planned(request.request_id, request.strategy, tuple(self._shares.items()))
        try:
            self._start([p for p in participants if p.id in self._shares])
            async for event in self._collect(vote):
                yield event
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        result = await self._result(vote)
        self._tell(result, [p for p in participants if p.id in self._shares])
        yield result

    # ---- plan -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> GenerateRequest:
        """The request with its whole conversation, its strategy and its seed settled."""
        request = self._asked
        messages = request.messages
        if request.append:
            messages = self._p.store.get(request.topic).messages + messages
        params = request.params
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        strategy = answers.resolve(request.strategy, messages, request.tools, params.json_schema)
        self._request = replace(request, messages=messages, params=params, strategy=strategy)
        return self._request

    def _participants(self) -> list[Peer]:
        if self._request.scope is Scope.LOCAL:
            return []
        fingerprint = self._p.local.engine.info.fingerprint
        return [p for p in self._p.mesh.peers() if p.info.fingerprint == fingerprint]

    def _start(self, peers: Sequence[Peer]) -> None:
        self._spawn(self._p.id, self._run_local())
        for peer in peers:
            self._spawn(peer.id, self._run_peer(peer))

    def _spawn(self, node: str, work: _Work) -> None:
        self._tasks[node] = asyncio.create_task(self._guard(node, work))

    async def _guard(self, node: str, work: _Work) -> None:
        """Run one node's part; whatever ends it is news."""
        error: ConclaveError | None = None
        try:
            await work
        except ConclaveError as e:
            error = e
        except Exception as e:  # a defect of ours in one node's part must not leave the others waiting
            log.exception("the part of node %s failed", node)
            error = BackendError(f"internal error: {type(e).__name__}; the log of node {self._p.id} has more")
        self._events.put_nowait(_Over(node, error))

    # ---- the two phases ---------------------------------------------------------------------------------------------

    async def _run_local(self) -> None:
        request, mine = self._request, self._shares[self._p.id]
        ballots: list[Ballot] = []
        job = f"{self._p.id}/{request.request_id}"
        async with contextlib.aclosing(self._p.local.run(job, request, mine, self._deadline)) as events:
            async for event in events:
                if isinstance(event, scheduler.Done) and event.candidate.finish_reason in VOTING:
                    ballots.append(self._ballot(event.candidate))
                    self._events.put_nowait(ballots[-1])
                elif not isinstance(event, scheduler.Ended | scheduler.Failed):
                    self._events.put_nowait(event)
        self._events.put_nowait(Counted(consensus.tally(ballots, request.strategy, len(mine))))

    async def _run_peer(self, peer: Peer) -> None:
        request, ids = self._request, self._shares[peer.id]
        wish = vote_pb2.PollRequest(
            request_id=request.request_id,
            topic=request.topic,
            messages=[wire.message_pb(m) for m in request.messages],
            tools=[wire.tool_pb(t) for t in request.tools],
            params=wire.params_pb(request.params),
            candidates=ids,
            strategy=request.strategy.value,
            coordinator=self._p.id,
        )
        left = None if self._deadline is None else max(self._deadline - self._p.clock(), 0.001)
        ballots: dict[int, Ballot] = {}
        async with contextlib.aclosing(peer.poll(wish, left)) as events:
            async for event in events:
                if event.HasField("ballot"):
                    candidate = replace(wire.candidate(event.ballot.candidate), node=peer.id)
                    if candidate.id not in ids or len(candidate.text.encode()) > MAX_TEXT_BYTES:
                        raise InvalidRequest("it sent a candidate that it was not asked for, or an oversized one")
                    ballots[candidate.id] = self._ballot(with_calls(candidate, request))
                    self._events.put_nowait(ballots[candidate.id])
                elif event.HasField("tally"):
                    self._check_tally(peer.id, event.tally, ballots)

    def _check_tally(self, node: str, counted: types_pb2.Tally, ballots: dict[int, Ballot]) -> None:
        """Ballots are what counts; a tally that does not add up with them is worth a warning."""
        try:
            problem = consensus.check(wire.tally(counted, ballots), list(ballots.values()))
        except InvalidRequest as e:
            problem = e.message
        if problem:
            self._warnings.append(f"the tally of node {node} was not used: {problem}")

    def _ballot(self, candidate: Candidate) -> Ballot:
        request = self._request
        question = answers.question_of(request.messages)
        return answers.ballot(candidate, request.strategy, question=question, json_schema=request.params.json_schema)

    async def _collect(self, vote: Vote) -> AsyncGenerator[Event, None]:
        """Feed the vote until it is decided, everyone is done, or the time is up."""
        running = set(self._tasks)
        while running and vote.state() is VoteState.PENDING:
            left = None if self._deadline is None else self._deadline - self._p.clock()
            try:
                # The engine ends its candidates at the same deadline; peers that hang are left behind here.
                # Not wait_for: before Python 3.12 it may swallow the cancellation of a client that leaves.
                async with asyncio.timeout(None if left is None else max(left, 0.05)):
                    news = await self._events.get()
            except TimeoutError:
                for node in running:
                    vote.lose(self._shares[node], node, "did not finish by the deadline")
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
        mine = news.node == self._p.id
        if news.error is not None and mine and (isinstance(news.error, InvalidRequest) or len(self._shares) == 1):
            raise news.error
        reason = news.error.message if news.error is not None else "ended without all of its candidates"
        vote.lose(self._shares[news.node], news.node, reason)

    def _take(self, vote: Vote, news: _News) -> list[Event]:
        if isinstance(news, Ballot):
            self._tokens += news.candidate.tokens
            return [Voted(news)] if vote.add(news) is None else []
        return self._observe(news)

    def _observe(self, news: _News) -> list[Event]:
        """What is worth telling or counting of news that is no ballot."""
        if isinstance(news, Counted):
            return [news]
        if isinstance(news, scheduler.Text):
            if self._first_token is None:
                self._first_token = self._p.clock()
            return [Wrote(candidate, text) for candidate, text in news.pieces]
        if isinstance(news, scheduler.Prefilled):
            self._prefilled = news
        elif isinstance(news, scheduler.Done):
            self._tokens += news.candidate.tokens
            if news.candidate.finish_reason is FinishReason.DEADLINE and news.candidate.text:
                self._partial.append(news.candidate)
        return []

    async def _stop_rest(self, running: set[str]) -> None:
        """Cancel what can no longer change the result. Our own engine says what it had spent; peers just stop."""
        for node in running:
            if node == self._p.id:
                self._p.local.engine.cancel(f"{self._p.id}/{self._request.request_id}")
            else:
                self._tasks[node].cancel()
        if self._p.id in running:
            await asyncio.wait([self._tasks[self._p.id]], timeout=DECIDE_TIMEOUT_S)

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
        if not vote.ballots:
            return await self._late_result(vote)
        if vote.state() is VoteState.LOST:
            lost = "; ".join(f"{loss.node}: {loss.reason}" for loss in vote.lost())
            raise NoQuorum(f"{len(vote.ballots)} of {vote.tally().planned} candidates finished, too few ({lost})")
        return await self._elected(vote, tuple(self._warnings))

    async def _late_result(self, vote: Vote) -> GenerateResult:
        """Nothing finished: the best of what was cut off by the deadline, if anything."""
        if not self._partial:
            lost = "; ".join(f"{loss.node}: {loss.reason}" for loss in vote.lost())
            if self._deadline is not None and self._p.clock() >= self._deadline:
                raise DeadlineExceeded(f"no candidate finished in time{f' ({lost})' if lost else ''}: allow more time")
            raise NoQuorum(f"no candidate finished ({lost}): try again")
        cut = Vote(self._request.strategy, [c.id for c in self._partial], adaptive=False)
        for candidate in self._partial:
            cut.add(self._ballot(candidate))
        return await self._elected(cut, (*self._warnings, "the deadline cut all candidates off"))

    async def _elected(self, vote: Vote, warnings: tuple[str, ...]) -> GenerateResult:
        request, clock = self._request, self._p.clock
        vectors: dict[int, Sequence[float]] | None = None
        if request.strategy is Strategy.SIMILARITY:
            vectors = {}
            if len({b.key for b in vote.ballots}) > 1:
                texts = [b.candidate.text for b in vote.ballots]
                found = await self._p.local.engine.embed(texts)
                vectors = {b.candidate.id: v for b, v in zip(vote.ballots, found, strict=True)}
        outcome = vote.outcome(vectors=vectors, warnings=warnings)
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
                first_token_ms=(self._first_token - self._started) * 1e3 if self._first_token else 0.0,
                total_ms=(clock() - self._started) * 1e3,
            ),
            request_id=request.request_id,
            tool_calls=winner.tool_calls,
        )
        return replace(result, version=self._commit(result)) if request.topic else result

    def _commit(self, result: GenerateResult) -> Version:
        held = self._p.store.version(result.topic)
        version = Version(held.epoch, held.turn + 1, self._p.id)
        said = Message("assistant", result.text, result.tool_calls)
        self._topic = Topic(
            result.topic,
            version,
            (*self._request.messages, said),
            result.usage.prompt + result.usage.completion,
            tuple(self._shares),
        )
        self._p.store.commit(self._topic)
        return version

    def _tell(self, result: GenerateResult, peers: Sequence[Peer]) -> None:
        """Tell the participants the outcome, in the background: the client does not wait for them."""
        if self._topic is None:
            return
        news = vote_pb2.DecideRequest(
            request_id=result.request_id,
            topic=result.topic,
            version=wire.version_pb(result.version),
            messages=[wire.message_pb(m) for m in self._topic.messages],
            winner=result.outcome.winner,
        )
        for peer in peers:
            task = asyncio.create_task(_decide(peer, news))
            self._p.background.add(task)
            task.add_done_callback(self._p.background.discard)


async def _decide(peer: Peer, news: vote_pb2.DecideRequest) -> None:
    try:
        await peer.decide(news, DECIDE_TIMEOUT_S)
    except ConclaveError as e:
        log.info("node %s was not told the outcome of %s: %s", peer.id, news.request_id, e)
