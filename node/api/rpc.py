"""The gRPC servicers: what a client or a peer asks, handed to the coordinator or the mesh.

They raise ConclaveError; `node.api.seam` makes status codes of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from node import tracing, wire
from node.api.status import status_pb
from node.coordinator import Coordinator, Counted, Event, Leads, Planned, Polled, Progressed, Voted, Wishes, Wrote
from node.engine.face import EngineFace
from node.errors import InvalidRequest, Unauthenticated
from node.mesh.identity import peer_id
from node.mesh.mesh import Mesh
from node.replicator import Travels
from node.store import Standings, Store
from node.v1 import (
    generate_pb2,
    generate_pb2_grpc,
    kvsync_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
    models_pb2,
    pool_pb2,
    types_pb2,
    vote_pb2,
    vote_pb2_grpc,
)
from node.wire import Defaults

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]
_SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((generate_pb2, "Generate"), (kvsync_pb2, "KVSync"), (mesh_pb2, "Mesh"))
)
_FOR_PEERS = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((models_pb2, "Models"), (pool_pb2, "Pool"), (vote_pb2, "Vote"))
)


class GenerateServicer(generate_pb2_grpc.GenerateServicer):
    """Generate: for clients on the local listener and for peers on the mesh's."""

    def __init__(self, coordinator: Coordinator, engine: EngineFace, defaults: Defaults) -> None:
        self._coordinator = coordinator
        self._engine = engine
        self._defaults = defaults

    async def Generate(self, request: generate_pb2.GenerateRequest, context: _Context) -> generate_pb2.GenerateResponse:
        """One answer."""
        asked = wire.generate_request(request, self._defaults)
        return wire.response_pb(await self._coordinator.generate(asked, _deadline(context)))

    async def Stream(
        self, request: generate_pb2.StreamRequest, context: _Context
    ) -> AsyncGenerator[generate_pb2.StreamResponse, None]:
        """One answer as events."""
        asked = wire.generate_request(request.request, self._defaults)
        said = request.wishes
        wishes = Wishes(progress=said.progress, leader=said.leader, peers=said.peers)
        async with contextlib.aclosing(self._coordinator.stream(asked, _deadline(context), wishes)) as events:
            async for event in events:
                yield _event_pb(event)

    async def Embed(self, request: generate_pb2.EmbedRequest, context: _Context) -> generate_pb2.EmbedResponse:
        """Vectors of texts."""
        if not 1 <= len(request.texts) <= wire.MAX_TEXTS:
            raise InvalidRequest(f"{len(request.texts)} texts: send 1 to {wire.MAX_TEXTS}")
        self._coordinator.check_model(request.model)
        texts = list(request.texts)
        vectors = await self._engine.embed(texts)
        tokens = sum(await self._engine.lengths(texts))
        return generate_pb2.EmbedResponse(
            embeddings=[generate_pb2.Embedding(values=v) for v in vectors],
            model=self._engine.info.name,
            usage=types_pb2.Usage(prompt_tokens=tokens),
        )


class VoteServicer(vote_pb2_grpc.VoteServicer):
    """Vote: for peers."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Poll(
        self, request: vote_pb2.PollRequest, context: _Context
    ) -> AsyncGenerator[vote_pb2.PollResponse, None]:
        """Our local phase for another node's vote."""
        async with contextlib.aclosing(self._poll(request, context)) as events:
            async for event in events:
                if isinstance(event, Wrote):
                    token = generate_pb2.Token(candidate_id=event.candidate, text=event.text)
                    yield vote_pb2.PollResponse(token=token)
                else:
                    yield vote_pb2.PollResponse(ballots=wire.ballots_pb(event.ballots, event.tally, event.free))

    async def Cast(self, request: vote_pb2.CastRequest, context: _Context) -> vote_pb2.CastResponse:
        """The same for one candidate."""
        if len(request.poll.candidates) != 1 or request.poll.texts:
            raise InvalidRequest(f"{len(request.poll.candidates)} candidates, or texts: those are polled")
        answer = vote_pb2.CastResponse()
        async with contextlib.aclosing(self._poll(request.poll, context)) as events:
            async for event in events:
                if isinstance(event, Polled):
                    answer = vote_pb2.CastResponse(ballots=wire.ballots_pb(event.ballots, event.tally, event.free))
        return answer

    def _poll(self, request: vote_pb2.PollRequest, context: _Context) -> AsyncGenerator[Wrote | Polled, None]:
        return self._coordinator.poll(
            wire.poll_request(request),
            list(request.candidates),
            peer_id(context.auth_context()),
            _deadline(context),
            request.wave,
            request.fingerprint,
            texts=request.texts,
        )

    async def Decide(self, request: vote_pb2.DecideRequest, context: _Context) -> vote_pb2.DecideResponse:
        """The outcome of another node's vote."""
        caller = peer_id(context.auth_context())
        if not request.topic:
            return vote_pb2.DecideResponse()
        version = wire.version(request.version)
        if version.node_id != caller:
            raise InvalidRequest(f"version.node_id is {version.node_id!r}: node {caller} decides in its own name only")
        topic = wire.name("topic", request.topic)
        with tracing.span("decide", {"conclave.request_id": request.request_id}, tracing.SERVER):
            committed, held = self._coordinator.decide(topic, version, request.request_id, request.winner)
        return vote_pb2.DecideResponse(committed=committed, held=wire.version_pb(held))

    async def Claim(self, request: vote_pb2.ClaimRequest, context: _Context) -> vote_pb2.ClaimResponse:
        """Another node was given a request that we may have been given too."""
        caller = peer_id(context.auth_context())
        id = wire.name("request_id", request.request_id)
        return vote_pb2.ClaimResponse(wait=await self._coordinator.claims.answer(id, caller, request.waits))


class MeshServicer(mesh_pb2_grpc.MeshServicer):
    """Mesh: Status for everyone, Hello and Probe for peers (`is_mesh`)."""

    def __init__(
        self,
        mesh: Mesh,
        engine: EngineFace,
        store: Store,
        version: str,
        *,
        is_mesh: bool,
        standings: Standings | None = None,
        travels: Travels | None = None,
        links: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._standings = standings or Standings()
        self._travels = travels
        self._links = links
        self._mesh = mesh
        self._engine = engine
        self._store = store
        self._version = version
        self._is_mesh = is_mesh

    async def Hello(self, request: mesh_pb2.HelloRequest, context: _Context) -> mesh_pb2.HelloResponse:
        """Another node introduces itself."""
        return await self._mesh.hello(request, self._caller(context), context.peer())

    async def Probe(self, request: mesh_pb2.ProbeRequest, context: _Context) -> mesh_pb2.ProbeResponse:
        """Another node asks for a sign of life."""
        return await self._mesh.probe(request, self._caller(context), context.peer())

    async def Status(self, request: mesh_pb2.StatusRequest, context: _Context) -> mesh_pb2.StatusResponse:
        """What `status` shows."""
        answer = status_pb(
            self._mesh, self._engine, self._store, self._version, self._standings, self._travels, self._links()
        )
        if self._is_mesh:
            del answer.notices[:], answer.travels[:]
        return answer

    def _caller(self, context: _Context) -> str:
        if not self._is_mesh:
            raise Unauthenticated("this call is for nodes of the mesh, on the mesh listener, with a certificate")
        return peer_id(context.auth_context())


def services(*, is_mesh: bool) -> tuple[str, ...]:
    """Names of what a listener serves: Models, Pool and Vote are for peers."""
    return (*_SERVICES, *_FOR_PEERS) if is_mesh else _SERVICES


def serve_health_and_reflection(server: grpc.aio.Server, *, is_mesh: bool) -> health.aio.HealthServicer:
    """Add both to a server; the health servicer is returned, to say when the node serves."""
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (*services(is_mesh=is_mesh), health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return servicer


async def set_serving(servicer: health.aio.HealthServicer, *, is_mesh: bool, serving: bool) -> None:
    """Say for every service of a listener, and for it as a whole, whether it serves."""
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *services(is_mesh=is_mesh)):
        await servicer.set(name, status)


def _deadline(context: _Context) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _event_pb(event: Event) -> generate_pb2.StreamResponse:
    if isinstance(event, Planned):
        shares = [generate_pb2.Share(node=node, candidates=ids) for node, ids in event.shares]
        plan = generate_pb2.Plan(request_id=event.request_id, strategy=event.strategy.value, shares=shares)
        return generate_pb2.StreamResponse(plan=plan)
    if isinstance(event, Wrote):
        logprobs = [wire.token_logprob_pb(t) for t in event.logprobs]
        token = generate_pb2.Token(candidate_id=event.candidate, text=event.text, logprobs=logprobs)
        return generate_pb2.StreamResponse(token=token)
    if isinstance(event, Voted):
        return generate_pb2.StreamResponse(candidate=wire.candidate_pb(event.ballot.candidate, event.ballot.key))
    if isinstance(event, Counted):
        return generate_pb2.StreamResponse(local=wire.tally_pb(event.tally))
    if isinstance(event, Progressed):
        progress = generate_pb2.Progress(
            computed_tokens=event.computed, cached_tokens=event.cached, prompt_tokens=event.prompt
        )
        return generate_pb2.StreamResponse(progress=progress)
    if isinstance(event, Leads):
        leader = generate_pb2.Leader(
            candidate_id=event.ballot.candidate.id, answer=event.ballot.key, share=event.share, finished=event.finished
        )
        return generate_pb2.StreamResponse(leader=leader)
    return generate_pb2.StreamResponse(done=wire.response_pb(event))
