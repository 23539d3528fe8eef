"""The coordinator: one request at a time for each topic and each id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from node import metrics, tracing
from node.coordinator import claims, late, topics, traced
from node.coordinator.answered import Answered, check_same
from node.coordinator.claims import Claim, Claims
from node.coordinator.events import NO_WISHES, Event, Polled, Wishes, Wrote
from node.coordinator.local import VOTING, LocalPhase, ballot, written
from node.coordinator.place import Peers, Place
from node.coordinator.turn import Turn
from node.core import consensus
from node.engine import scheduler
from node.engine.face import EngineFace
from node.errors import ConclaveError, NotFound, Overloaded
from node.replicator import Replicator
from node.store import Standings, Store
from node.types import Ballot, EarlyStop, GenerateRequest, GenerateResult, Version

log = logging.getLogger(__name__)

REMEMBERED_POLLS = 256
MAX_WAITING_TURNS = 64  # of one topic


class Coordinator:
    """Answers requests with this node's engine and its peers. Ids in results are node ids of the mesh."""

    def __init__(
        self,
        node_id: str,
        engine: EngineFace,
        mesh: Peers,
        store: Store,
        *,
        strict_quorum: bool = False,
        early_stop: EarlyStop = EarlyStop.ADAPTIVE,
        clock: Callable[[], float] = time.monotonic,
        replicator: Replicator | None = None,
        standings: Standings | None = None,
        ensemble: bool = True,
    ) -> None:
        self.standings = standings or Standings()
        self._local = LocalPhase(engine, replicator.warm if replicator is not None else None)
        self._place = Place(
            node_id,
            self._local,
            mesh,
            store,
            clock,
            strict_quorum,
            early_stop,
            replicator,
            self.standings,
            ensemble,
        )
        self._remembered = Answered()
        # The answer is None where the first call of this id failed or was left.
        self._running: dict[str, tuple[GenerateRequest, asyncio.Future[GenerateResult | None]]] = {}
        self._topics: dict[str, _TopicTurns] = {}
        self._polled: OrderedDict[str, str] = OrderedDict()  # request -> job, until its outcome comes
        self._late: set[asyncio.Task[None]] = set()
        self.claims = Claims(node_id)

    async def stop(self) -> None:
        """Wait for what still runs in the background, but for what would only make later turns quicker."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        while self._place.background:
            await asyncio.gather(*self._place.background, return_exceptions=True)

    async def length(self, request: GenerateRequest) -> int:
        """Tokens of a request's prompt, by this node's model; an estimate where only a server knows them. Raises
        InvalidRequest, NotFound for a model of another node's."""
        self.check_model(request.model)
        found = await self._local.prompt(request)
        texts = [m.content for m in request.messages]
        return len(found) or sum(await self._local.engine.lengths(texts))

    async def rendered(self, request: GenerateRequest) -> str:
        """A request's prompt by this node's model, as text. Raises InvalidRequest, NotFound as `length`."""
        self.check_model(request.model)
        return await self._local.rendered(request)

    async def generate(self, request: GenerateRequest, deadline: float | None = None) -> GenerateResult:
        """The answer to a request; `deadline` in seconds of the monotonic clock. Raises ConclaveError."""
        result: GenerateResult | None = None
        async with contextlib.aclosing(self.stream(request, deadline)) as events:
            async for event in events:
                if isinstance(event, GenerateResult):
                    result = event
        assert result is not None
        return result

    async def stream(
        self, request: GenerateRequest, deadline: float | None = None, wishes: Wishes = NO_WISHES
    ) -> AsyncGenerator[Event, None]:
        """The same as events, `GenerateResult` last. Leaving the iteration stops all candidates on all nodes."""
        is_named = bool(request.request_id)
        request = replace(request, request_id=request.request_id or secrets.token_hex(8))
        known = await self._known(request)
        if known is not None:
            yield known
            return
        # Before anybody can wait for the answer: what raises here would leave them waiting.
        model = request.model or self._local.engine.info.name
        span = traced.started(request, model, self._place.id)
        answer: asyncio.Future[GenerateResult | None] = asyncio.get_running_loop().create_future()
        self._running[request.request_id] = (request, answer)
        result: GenerateResult | None = None
        outcome, error, started = "left", "", time.monotonic()
        try:
            turn = Turn(self._place, request, deadline, wishes, span)
            running = self._turn(turn, request, deadline) if is_named else self._turn_alone(turn, request)
            async with self._turn_of(request.topic), contextlib.aclosing(running) as events:
                async for event in events:
                    if isinstance(event, GenerateResult):
                        result, outcome = event, "ok"
                        traced.answered(span, event, model)
                        self._remembered.keep(request, event)
                    yield event
        except Exception as e:
            outcome = e.code.lower() if isinstance(e, ConclaveError) else "internal"
            error = tracing.failure(e)
            raise
        finally:
            span.tell({"conclave.outcome": outcome})
            span.end(error)
            seconds = time.monotonic() - started
            metrics.REQUESTS.labels(outcome).inc()
            if result is not None:
                metrics.REQUEST_SECONDS.observe(seconds)
            tokens = result.usage.candidates if result is not None else 0
            more = {"trace_id": span.trace} if span.is_on else {}
            _tell("request", request, outcome=outcome, seconds=round(seconds, 4), tokens=tokens, **more)
            del self._running[request.request_id]
            answer.set_result(result)

    async def _turn(self, turn: Turn, request: GenerateRequest, deadline: float | None) -> AsyncGenerator[Event, None]:
        """A turn's events, of a request that other nodes may have been given too."""
        async with self.claims.claim(request.request_id) as claim:
            answered = await self._answered(claim, request, deadline) if request.topic else None
            if answered is not None:
                yield answered
                return
            async with contextlib.aclosing(self._run(turn, request)) as events:
                async for event in events:
                    yield event

    async def _answered(self, claim: Claim, request: GenerateRequest, deadline: float | None) -> GenerateResult | None:
        """Learn what other nodes know of a topic, and wait for those that are at work on the request; the answer, if
        one of them gave it. None: it is ours to give."""
        place = self._place
        if place.replicator is None:
            return topics.again(place.store, request)
        given = await place.replicator.freshen(request.topic, request.parent, request.request_id)
        answered = topics.again(place.store, request)
        if answered is not None:
            return answered
        given |= {*self.claims.note(request.request_id, place.id)}
        for _ in range(claims.ROUNDS):
            ahead = await self.claims.first(claim, given, place.mesh.peers())
            if ahead is None:
                # One that was at work when we heard of it may be done by now.
                await place.replicator.fetch(request.topic, given)
                return topics.again(place.store, request)
            left = None if deadline is None else max(deadline - place.clock(), 0.001)
            await self.claims.wait(claim, ahead, left)
            with contextlib.suppress(ConclaveError):
                await place.replicator.turns.fetch(ahead, request.topic)
            answered = topics.again(place.store, request)
            if answered is not None:
                return answered
        await self.claims.first(claim, (), ())
        return None

    async def _turn_alone(self, turn: Turn, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """A turn's events; of a topic, after what other nodes know of it, which may be the answer itself."""
        if request.topic:
            if self._place.replicator is not None:
                await self._place.replicator.freshen(request.topic, request.parent)
            answered = topics.again(self._place.store, request)
            if answered is not None:
                yield answered
                return
        async with contextlib.aclosing(self._run(turn, request)) as events:
            async for event in events:
                yield event

    async def _run(self, turn: Turn, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(turn.run()) as events:
            async for event in events:
                if isinstance(event, GenerateResult) and turn.is_won_elsewhere(event):
                    self._compute_later(event, request)
                yield event

    def _compute_later(self, result: GenerateResult, request: GenerateRequest) -> None:
        work = late.compute(self._place, result.topic, result.version, request.tools, self.is_busy)
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def poll(
        self,
        request: GenerateRequest,
        candidates: Sequence[int],
        coordinator: str,
        deadline: float | None = None,
        wave: int = 0,
        fingerprint: str = "",
        *,
        texts: bool = False,
    ) -> AsyncGenerator[Wrote | Polled, None]:
        """The local phase for another node's vote: ballots as candidates finish, with the last of them the tally.

        With `texts` also what candidates write. Raises NotFound if it wants candidates of a model, by its fingerprint,
        that is not the one of this node.
        """
        info = self._local.engine.info
        if fingerprint not in ("", info.fingerprint):
            raise NotFound(f"this node has another model by now, {info.name!r}")
        ballots: list[Ballot] = []
        sent, open_ = 0, len(candidates)
        job_id = f"{coordinator}/{request.request_id}/{secrets.token_hex(4)}"
        values = {"conclave.request_id": request.request_id, "conclave.node": self._place.id}
        span = tracing.start("poll", values, tracing.SERVER)
        try:
            running = self._local.run(job_id, request, candidates, deadline, wave, span, is_polled=not texts)
            async with contextlib.aclosing(running) as events:
                async for event in events:
                    if isinstance(event, scheduler.Done):
                        open_ -= 1
                        if event.candidate.finish_reason in VOTING:
                            ballots.append(ballot(event.candidate, request))
                        # A message costs both ends more than a ballot: those that are there together go together.
                        if open_ and not event.more and ballots[sent:]:
                            yield Polled(tuple(ballots[sent:]))
                            sent = len(ballots)
                    elif texts and isinstance(event, scheduler.Text):
                        for wrote in written(event):
                            yield wrote
        except Exception as e:
            span.end(tracing.failure(e))
            raise
        finally:
            span.end()
            self._ended(request, job_id, texts=texts)
            _tell("poll", request, coordinator=coordinator, candidates=len(candidates), finished=len(ballots))
        counted = consensus.tally(ballots, request.strategy, len(candidates))
        yield Polled(tuple(ballots[sent:]), counted, self._local.engine.free_sequences)

    def decide(self, topic: str, version: Version, request_id: str = "", winner: int = 0) -> tuple[bool, Version]:
        """The outcome of another node's vote: if the winner was ours, its KV is kept. `winner` is its id.

        Says whether the topic is held at this version (its log comes by KVSync.Append), and the version held.
        """
        self.won(request_id, winner)
        held = self._place.store.version(topic)
        return held >= version, held

    def won(self, request_id: str, winner: int) -> None:
        """Another node's vote is over: KV of the candidate that won is kept, if it was written here."""
        if (job_id := self._polled.pop(request_id, None)) is not None:
            self._local.engine.commit(job_id, winner)

    def is_busy(self, topic: str) -> bool:
        """Whether a turn of this topic runs or waits here."""
        return topic in self._topics

    def check_model(self, model: str) -> None:
        """Raises NotFound for a model that is asked for by name and not loaded here."""
        name = self._local.engine.info.name
        if model not in ("", name):
            raise NotFound(f"model {model!r} is not loaded here; this node has {name!r}")

    def _ended(self, request: GenerateRequest, job_id: str, *, texts: bool) -> None:
        """A poll is over. For a topic, `decide` says who won; otherwise the prompt is what may be of use again, and
        where nobody reads along the engine keeps it by itself."""
        if not request.topic:
            if texts:
                self._local.engine.commit(job_id)
            return
        self._polled[request.request_id] = job_id
        while len(self._polled) > REMEMBERED_POLLS:
            self._polled.popitem(last=False)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    async def _known(self, request: GenerateRequest) -> GenerateResult | None:
        """The result of a request that came before under this id, waiting for it if it still runs."""
        id = request.request_id
        while id in self._running:
            other, answer = self._running[id]
            check_same(id, same=request == other)
            result = await asyncio.shield(answer)
            if result is not None:
                return result
            # The first call failed or was left. Whoever of those that waited comes first answers; the others wait on.
        return self._remembered.get(request)

    @contextlib.asynccontextmanager
    async def _turn_of(self, topic: str) -> AsyncIterator[None]:
        """One turn of a topic at a time. Raises Overloaded if too many wait for theirs."""
        if not topic:
            yield
            return
        turns = self._topics.setdefault(topic, _TopicTurns())
        if turns.users > MAX_WAITING_TURNS:
            raise Overloaded(f"{MAX_WAITING_TURNS} turns of topic {topic!r} are waiting: try again later")
        turns.users += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._topics[topic]


@dataclass(slots=True)
class _TopicTurns:
    """The turns of one topic: who has the lock, and how many have or want it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def _tell(what: str, request: GenerateRequest, **fields: object) -> None:
    """A line of the log for a request's part on this node; what it says is in it for no one to read."""
    if log.isEnabledFor(logging.INFO):
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        log.info("%s %s: %s", what, request.request_id, said, extra={"request_id": request.request_id, **fields})
