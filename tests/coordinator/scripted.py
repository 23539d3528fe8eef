"""A coordinator over the real engine, with peers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from node import wire
from node.coordinator import NO_WISHES, Coordinator, Event, Wishes
from node.core import answers, consensus
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import PeerUnavailable
from node.store import Store
from node.types import Candidate, FinishReason, GenerateRequest, Message, NodeInfo, SamplingParams, Strategy
from node.v1 import generate_pb2, types_pb2, vote_pb2

Script = Callable[[vote_pb2.PollRequest], AsyncGenerator[vote_pb2.PollResponse, None]]
ENDLESS = FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=300)


def ballot(id: int, text: str, **fields: Any) -> vote_pb2.PollResponse:
    """What a peer sends for a candidate; its key, weight and quality are lies that must not be believed."""
    fields = {"tokens": 3, "mean_logprob": -0.1, "finish_reason": "stop", "latency_ms": 5.0} | fields
    candidate = types_pb2.Candidate(id=id, node="somebody", text=text, answer="lie", **fields)
    return vote_pb2.PollResponse(ballot=types_pb2.Ballot(candidate=candidate, key="lie", weight=1e9, quality=1.0))


def tally(wish: vote_pb2.PollRequest, sent: Sequence[vote_pb2.PollResponse]) -> vote_pb2.PollResponse:
    """The tally that is right for what was sent."""
    question = answers.question_of(tuple(wire.message(m) for m in wish.messages))
    strategy = Strategy(wish.strategy)
    found = [answers.ballot(wire.candidate(s.ballot.candidate, ""), strategy, question=question) for s in sent]
    return vote_pb2.PollResponse(tally=wire.tally_pb(consensus.tally(found, strategy, len(wish.candidates))))


def says(*texts: str, delay_s: float = 0.0, **fields: Any) -> Script:
    """Answers each candidate with the next of the texts, over and over, then sends the tally."""

    async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        sent = []
        for i, id in enumerate(wish.candidates):
            await asyncio.sleep(delay_s)
            sent.append(ballot(id, texts[i % len(texts)], **fields))
            yield sent[-1]
        yield tally(wish, sent)

    return script


def dies(after: int, text: str = "42") -> Script:
    """Sends so many ballots, then its connection breaks."""

    async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        for id in list(wish.candidates)[:after]:
            yield ballot(id, text)
        raise PeerUnavailable("node is gone: nobody listens there")

    return script


def hangs(after: int = 0, text: str = "42") -> Script:
    """Sends so many ballots, then nothing more."""

    async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        for id in list(wish.candidates)[:after]:
            yield ballot(id, text)
        await asyncio.Event().wait()

    return script


def sends(*make: Callable[[vote_pb2.PollRequest], vote_pb2.PollResponse]) -> Script:
    """Sends just these events."""

    async def script(wish: vote_pb2.PollRequest) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        for each in make:
            await asyncio.sleep(0)
            yield each(wish)

    return script


def writes(id: int, text: str) -> vote_pb2.PollResponse:
    """What a peer sends while a candidate is written."""
    return vote_pb2.PollResponse(token=generate_pb2.Token(candidate_id=id, text=text))


class ScriptedPeer:
    """What the coordinator uses of `node.mesh.peer.Peer`."""

    def __init__(
        self, id: str, script: Script, fingerprint: str, *, free: int = 16, model: str = "fake", backend: str = "fake"
    ) -> None:
        self.id = id
        self.info = NodeInfo(
            id,
            "127.0.0.1:1",
            model=model,
            fingerprint=fingerprint,
            backend=backend,
            decode_tokens_per_s=0,
            free_sequences=free,
        )
        self.script = script
        self.wishes: list[vote_pb2.PollRequest] = []
        self.timeouts: list[float | None] = []
        self.decided: list[vote_pb2.DecideRequest] = []
        self.open = 0
        self.commits = True

    async def poll(
        self, wish: vote_pb2.PollRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        self.wishes.append(wish)
        self.timeouts.append(timeout_s)
        self.open += 1
        try:
            async with contextlib.aclosing(self.script(wish)) as events:
                async for event in events:
                    yield event
        finally:
            self.open -= 1

    async def claim(self, request_id: str, *, waits: bool, timeout_s: float) -> bool:
        return False

    async def decide(self, news: vote_pb2.DecideRequest, timeout_s: float = 5.0) -> vote_pb2.DecideResponse:
        self.decided.append(news)
        return vote_pb2.DecideResponse(committed=self.commits)


@dataclass
class Swarm:
    """A coordinator with everything around it."""

    coordinator: Coordinator
    engine: Engine
    backend: FakeBackend
    store: Store
    alive: list[ScriptedPeer]
    sequences: int

    def peers(self) -> list[Any]:
        return list(self.alive)

    def join(self, id: str, script: Script, *, fingerprint: str | None = None, **of: Any) -> ScriptedPeer:
        peer = ScriptedPeer(id, script, self.engine.info.fingerprint if fingerprint is None else fingerprint, **of)
        self.alive.append(peer)
        return peer

    async def settled(self) -> None:
        """Wait until nothing runs any more; fails where something leaked."""
        await self.coordinator.stop()
        async with asyncio.timeout(60):
            while self.engine.free_sequences < self.sequences or self.engine.load.queued:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert all(not peer.open for peer in self.alive)
        assert not self.engine._streams
        assert not self.coordinator._running
        assert not self.coordinator._topics


@contextlib.asynccontextmanager
async def swarm(spec: FakeSpec | None = None, *, sequences: int = 16, **options: Any) -> AsyncIterator[Swarm]:
    """A node "me" whose model says what `spec` says ("42" by default); checks at the end that nothing leaked."""
    backend = FakeBackend(spec or FakeSpec(answers=("42",)), sequences=sequences)
    engine = Engine(lambda: backend, node="me", queue_limit=options.pop("queue_limit", 64))
    await engine.start()
    engine.decode_tokens_per_s = 0.0  # all nodes count as equally fast, so that shares are known
    store, alive = Store(), []  # type: ignore[var-annotated]
    made = Swarm(None, engine, backend, store, alive, sequences)  # type: ignore[arg-type]
    made.coordinator = Coordinator("me", engine, made, store, **options)
    try:
        yield made
        await made.settled()
    finally:
        await engine.close()


def request(text: str = "What is 6 * 7?", **fields: Any) -> GenerateRequest:
    """A question of which six candidates give the key."""
    fields = {"candidates": 6, "strategy": Strategy.MAJORITY} | fields
    params = replace(SamplingParams(seed=7), **fields.pop("params", {}))
    return GenerateRequest((Message("user", text),), params=params, **fields)


async def events(
    made: Swarm, asked: GenerateRequest, deadline: float | None = None, wishes: Wishes = NO_WISHES
) -> list[Event]:
    """All events of a request."""
    return [event async for event in made.coordinator.stream(asked, deadline, wishes)]


def candidate(id: int, text: str, reason: FinishReason = FinishReason.STOP) -> Candidate:
    return Candidate(id, "n", text, 3, -0.1, reason, 1.0)
