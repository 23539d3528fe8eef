"""The coordinator: one request at a time for each topic and each id."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace

from node.coordinator.events import Event
from node.coordinator.local import VOTING, LocalPhase
from node.coordinator.turn import Peers, Place, Turn
from node.core import answers, consensus
from node.engine import scheduler
from node.engine.engine import Engine
from node.errors import InvalidRequest, NotFound
from node.store import Store, Topic
from node.types import Ballot, EarlyStop, GenerateRequest, GenerateResult, Tally, Version

REMEMBERED_RESULTS = 1024


class Coordinator:
    """Answers requests with this node's engine and its peers. Ids in results are node ids of the mesh."""

    def __init__(
        self,
        node_id: str,
        engine: Engine,
        mesh: Peers,
        store: Store,
        *,
        strict_quorum: bool = False,
        early_stop: EarlyStop = EarlyStop.ADAPTIVE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = LocalPhase(engine)
        self._place = Place(node_id, self._local, mesh, store, clock, strict_quorum, early_stop)
        self._results: OrderedDict[str, tuple[str, GenerateResult]] = OrderedDict()
        self._running: dict[str, tuple[str, asyncio.Future[GenerateResult]]] = {}
        self._topic_locks: dict[str, asyncio.Lock] = {}

    async def stop(self) -> None:
        """Wait for what still runs in the background."""
        await asyncio.gather(*self._place.background, return_exceptions=True)

    async def generate(self, request: GenerateRequest, deadline: float | None = None) -> GenerateResult:
        """The answer to a request; `deadline` in seconds of the monotonic clock. Raises ConclaveError."""
        result: GenerateResult | None = None
        async with contextlib.aclosing(self.stream(request, deadline)) as events:
            async for event in events:
                if isinstance(event, GenerateResult):
                    result = event
        assert result is not None
        return result

    async def stream(self, request: GenerateRequest, deadline: float | None = None) -> AsyncGenerator[Event, None]:
        """The same as events, `GenerateResult` last. Leaving the iteration stops all candidates on all nodes."""
        self.check_model(request.model)
        request = replace(request, request_id=request.request_id or secrets.token_hex(8))
        content = _content_hash(request)
        known = await self._known(request.request_id, content)
        if known is not None:
            yield known
            return
        answer: asyncio.Future[GenerateResult] = asyncio.get_running_loop().create_future()
        self._running[request.request_id] = (content, answer)
        try:
            async with self._topic_lock(request.topic):
                turn = Turn(self._place, request, deadline)
                async with contextlib.aclosing(turn.run()) as events:
                    async for event in events:
                        if isinstance(event, GenerateResult):
                            self._remember(content, event)
                            answer.set_result(event)
                        yield event
        finally:
            del self._running[request.request_id]
            if not answer.done():
                answer.cancel()

    async def poll(
        self, request: GenerateRequest, candidates: Sequence[int], coordinator: str, deadline: float | None = None
    ) -> AsyncGenerator[Ballot | Tally, None]:
        """The local phase for another node's vote: a ballot as each candidate finishes, then the tally."""
        question = answers.question_of(request.messages)
        ballots: list[Ballot] = []
        job_id = f"{coordinator}/{request.request_id}/{secrets.token_hex(4)}"
        async with contextlib.aclosing(self._local.run(job_id, request, candidates, deadline)) as events:
            async for event in events:
                if isinstance(event, scheduler.Done) and event.candidate.finish_reason in VOTING:
                    ballot = answers.ballot(
                        event.candidate, request.strategy, question=question, json_schema=request.params.json_schema
                    )
                    ballots.append(ballot)
                    yield ballot
        yield consensus.tally(ballots, request.strategy, len(candidates))

    def decide(self, topic: Topic) -> tuple[bool, Version]:
        """Hold the topic of another node's vote. Says whether it is held now, and the version held."""
        committed = self._place.store.commit(topic)
        return committed, self._place.store.version(topic.name)

    def check_model(self, model: str) -> None:
        """Raises NotFound for a model that is asked for by name and not loaded here."""
        name = self._local.engine.info.name
        if model not in ("", name):
            raise NotFound(f"model {model!r} is not loaded here; this node has {name!r}")

    # ---- helpers ----------------------------------------------------------------------------------------------------

    async def _known(self, request_id: str, content: str) -> GenerateResult | None:
        """The result of a request that came before under this id, waiting for it if it still runs."""
        while request_id in self._running:
            other, answer = self._running[request_id]
            _check_same(request_id, content, other)
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not answer.cancelled() or (task is not None and task.cancelling()):
                    raise  # it is we who were cancelled
                await asyncio.sleep(0)  # the first call failed or was left: this one answers
        if request_id in self._results:
            other, result = self._results[request_id]
            _check_same(request_id, content, other)
            return result
        return None

    def _remember(self, content: str, result: GenerateResult) -> None:
        self._results[result.request_id] = (content, result)
        while len(self._results) > REMEMBERED_RESULTS:
            self._results.popitem(last=False)

    @contextlib.asynccontextmanager
    async def _topic_lock(self, topic: str) -> AsyncIterator[None]:
        """One turn of a topic at a time."""
        if not topic:
            yield
            return
        lock = self._topic_locks.setdefault(topic, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not getattr(lock, "_waiters", None):
                self._topic_locks.pop(topic, None)


def _content_hash(request: GenerateRequest) -> str:
    return hashlib.sha256(repr(replace(request, request_id="")).encode()).hexdigest()


def _check_same(request_id: str, content: str, other: str) -> None:
    if content != other:
        raise InvalidRequest(f"request_id {request_id!r} was used for another request: an id belongs to one request")
