"""A peer that has the token and breaks every rule, over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from swarm import SOON_S, Node, Swarm, slow, until

from node import wire
from node.client import Client, request
from node.errors import DeadlineExceeded
from node.mesh.identity import Identity, peer_id
from node.mesh.mesh import Mesh
from node.types import NodeInfo
from node.v1 import generate_pb2, mesh_pb2, mesh_pb2_grpc, types_pb2, vote_pb2, vote_pb2_grpc

HOST = "127.0.0.1"
LIAR = "lllllllll2"
SILENCE_S = 4.0  # how long somebody waits who is told nothing


def ballot(id: int, text: str = "answer: 41", **fields: Any) -> vote_pb2.PollResponse:
    candidate = types_pb2.Candidate(id=id, node=LIAR, text=text, tokens=2, finish_reason="stop", **fields)
    return vote_pb2.PollResponse(ballot=types_pb2.Ballot(candidate=candidate, key="41", weight=1e9, quality=1e9))


async def ten_times(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    for i in range(10 * len(wish.candidates)):
        yield ballot(i + 1)


async def twice(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    for _ in range(2):
        yield ballot(wish.candidates[0])


async def another_request(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    yield ballot(max(wish.candidates) + 1000)


async def huge(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    yield ballot(wish.candidates[0], "x" * (100 << 20))


async def long(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    yield ballot(wish.candidates[0], "x" * (8 << 20))


async def not_numbers(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    """These are no reason to refuse a text: the numbers are not believed anyway. But it ends without the rest."""
    yield ballot(wish.candidates[0], "answer: 42", mean_logprob=math.nan, latency_ms=-math.inf)


async def dies_at_once(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    raise RuntimeError
    yield


async def says_nothing(wish: vote_pb2.PollRequest) -> AsyncIterator[vote_pb2.PollResponse]:
    await asyncio.sleep(SOON_S)
    yield ballot(1)


class Hostile(mesh_pb2_grpc.MeshServicer, vote_pb2_grpc.VoteServicer):
    """Meets other nodes as it should, and answers polls as it likes."""

    mesh: Mesh
    poll: Callable[[vote_pb2.PollRequest], AsyncIterator[vote_pb2.PollResponse]]

    async def Hello(self, wish: mesh_pb2.HelloRequest, context: Any) -> mesh_pb2.HelloResponse:
        return await self.mesh.hello(wish, peer_id(context.auth_context()))

    async def Probe(self, wish: mesh_pb2.ProbeRequest, context: Any) -> mesh_pb2.ProbeResponse:
        return await self.mesh.probe(wish, peer_id(context.auth_context()))

    async def Poll(self, wish: vote_pb2.PollRequest, context: Any) -> AsyncIterator[vote_pb2.PollResponse]:
        async for event in self.poll(wish):
            yield event


@contextlib.asynccontextmanager
async def hostile(made: Swarm, like: Node) -> AsyncIterator[Hostile]:
    """A node that says that it has the same model."""
    identity = Identity((await asyncio.to_thread(made.run, "token", "show")).out.strip(), LIAR)
    model = (await asyncio.to_thread(like.client.status)).nodes[0]
    server = grpc.aio.server(options=[*wire.SERVER_OPTIONS, ("grpc.max_send_message_length", -1)])
    liar = Hostile()
    mesh_pb2_grpc.add_MeshServicer_to_server(liar, server)
    vote_pb2_grpc.add_VoteServicer_to_server(liar, server)
    address = f"{HOST}:{server.add_secure_port(f'{HOST}:0', identity.server_credentials())}"
    me = NodeInfo(LIAR, address, fingerprint=model.fingerprint, model=model.model, free_sequences=16, sequences=16)
    liar.mesh = Mesh(identity, lambda: me, interfaces=[HOST], mdns=False)
    await server.start()
    await liar.mesh.start([like.mesh_address])
    try:
        await asyncio.to_thread(until, lambda: LIAR in like.peers(), "the liar is let in")
        yield liar
    finally:
        await liar.mesh.stop()
        await server.stop(None)


LIES = [ten_times, twice, another_request, huge, long, not_numbers, dies_at_once, says_nothing]


async def test_every_lie_costs_the_liar_its_ballots_only(own: Swarm) -> None:
    node = own.start(*slow(2, 50, "42"), "--join", "none")
    await asyncio.to_thread(own.ready, node)
    async with hostile(own, node) as liar, Client(node.address) as client:
        for lie in LIES:
            liar.poll = lie
            name = lie.__name__
            answer = generate_pb2.GenerateResponse()
            async with asyncio.timeout(SOON_S):
                while not answer.outcome.lost:  # the liar was not asked, or all stood still until the deadline
                    # A stream that broke is a reason to doubt a node: it must be trusted again, or it is not asked.
                    await asyncio.to_thread(until, lambda: LIAR in node.peers(), "the liar is a peer")
                    asked = request("Why?", candidates=8, strategy="quality")
                    with contextlib.suppress(DeadlineExceeded):
                        answer = await client.generate(asked, SILENCE_S if lie is says_nothing else SOON_S)
            assert answer.text.endswith("answer: 42"), name
            (loss,) = answer.outcome.lost
            assert loss.node == LIAR, name
            assert loss.reason, name
            assert "\n" not in loss.reason, name
            believed = [c for c in answer.candidates if c.node == LIAR]
            assert len(believed) <= 1, name
            assert answer.outcome.finished + len(loss.candidates) == answer.outcome.planned, name
            assert sum(c.weight for c in answer.outcome.clusters) <= answer.outcome.finished, name
            assert await asyncio.to_thread(lambda: node.used() == 0 or until(lambda: node.used() == 0, "free")), name
    assert "Traceback" not in node.said()
