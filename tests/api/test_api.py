"""The gRPC services over real servers on loopback: answers, and the code and line of everything that goes wrong."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from node import wire
from node.api import rpc
from node.api.kvsync import KVSyncServicer
from node.api.seam import seam
from node.coordinator import Coordinator
from node.core.log import Entry
from node.engine.engine import Engine
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import InvalidRequest, Unauthenticated
from node.mesh.identity import Identity, new_token
from node.mesh.peer import Peer
from node.replicator import Replicator
from node.store import Blocks, Store
from node.types import Message, NodeInfo, Version
from node.v1 import (
    generate_pb2,
    generate_pb2_grpc,
    kvsync_pb2,
    kvsync_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    types_pb2,
    vote_pb2,
    vote_pb2_grpc,
)

OURS, OTHERS = "a" * 16, "b" * 16
SLOW = FakeSpec(answers=(" ".join(["w"] * 10_000),), tokens_per_s=200)


class Mesh:
    """What the servicers need of `node.mesh.mesh.Mesh`."""

    mesh_id = "mesh-1"
    notices = ("another mesh is here",)

    def __init__(self) -> None:
        self.callers: list[str] = []

    def peers(self) -> list[Any]:
        return []

    async def hello(self, request: object, caller: str, source: str) -> mesh_pb2.HelloResponse:
        self.callers.append(caller)
        return mesh_pb2.HelloResponse()

    probe = hello

    def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(OURS, "127.0.0.1:7421", name="me", model="fake")]


@dataclass
class Served:
    """A node's services on a plain listener (`channel`) and on one with mutual TLS (`peer`)."""

    channel: grpc.aio.Channel
    peer: Peer
    engine: Engine
    store: Store
    mesh: Mesh
    health: Any

    @property
    def generate(self) -> Any:
        return generate_pb2_grpc.GenerateStub(self.channel)

    async def free(self) -> None:
        async with asyncio.timeout(60):
            while self.engine.free_sequences < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def served(spec: FakeSpec | None = None, queue_limit: int = 64) -> AsyncIterator[Served]:
    backend = FakeBackend(spec or FakeSpec())
    engine = Engine(lambda: backend, node=OURS, queue_limit=queue_limit)
    await engine.start()
    store, mesh, token = Store(), Mesh(), new_token()
    coordinator = Coordinator(OURS, engine, mesh, store)
    replicator = Replicator(OURS, engine, mesh, store, Blocks(Path(), 0))
    servers = []
    for is_mesh in (False, True):
        server = grpc.aio.server(options=wire.SERVER_OPTIONS)
        servicer = rpc.GenerateServicer(coordinator, engine, wire.Defaults())
        generate_pb2_grpc.add_GenerateServicer_to_server(servicer, seam(server))
        of_mesh = rpc.MeshServicer(mesh, engine, store, "1.2.3", is_mesh=is_mesh)  # type: ignore[arg-type]
        mesh_pb2_grpc.add_MeshServicer_to_server(of_mesh, seam(server))
        kvsync_pb2_grpc.add_KVSyncServicer_to_server(KVSyncServicer(replicator, is_mesh=is_mesh), seam(server))
        vote_pb2_grpc.add_VoteServicer_to_server(rpc.VoteServicer(coordinator), seam(server))
        servers.append(server)
    health = rpc.serve_health_and_reflection(servers[0], is_mesh=False)
    port = servers[0].add_insecure_port("127.0.0.1:0")
    secure = servers[1].add_secure_port("127.0.0.1:0", Identity(token, OURS).server_credentials())
    for server in servers:
        await server.start()
    peer = Peer(Identity(token, OTHERS), f"127.0.0.1:{secure}", OURS)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=wire.CHANNEL_OPTIONS) as channel:
            yield Served(channel, peer, engine, store, mesh, health)
    finally:
        await peer.close()
        for server in servers:
            await server.stop(0)
        await coordinator.stop()
        await engine.close()


def asked(text: str = "hi", **fields: Any) -> generate_pb2.GenerateRequest:
    return generate_pb2.GenerateRequest(messages=[types_pb2.Message(role="user", content=text)], **fields)


@contextlib.contextmanager
def refused(code: str, line: str) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code().name == code, caught.value.details()
    assert line in (caught.value.details() or "")
    assert "Traceback" not in (caught.value.details() or "")


# ---- what works ------------------------------------------------------------------------------------------------------


async def test_generate_stream_embed() -> None:
    async with served() as node:
        answer = await node.generate.Generate(asked(candidates=2, topic="t"))
        assert (answer.text, answer.topic, answer.version.turn) == ("echo: hi", "t", 1)
        stream = node.generate.Stream(generate_pb2.StreamRequest(request=asked(candidates=2)))
        kinds = [event.WhichOneof("event") async for event in stream]
        assert kinds[0] == "plan"
        assert kinds[-1] == "done"
        assert kinds.count("candidate") == 2
        assert {"token", "local"} <= set(kinds)
        embedded = await node.generate.Embed(generate_pb2.EmbedRequest(texts=["red sky", "red sky", "blue"]))
        vectors = [list(e.values) for e in embedded.embeddings]
        assert vectors[0] == vectors[1] != vectors[2]
        assert (embedded.model, embedded.usage.prompt_tokens) == ("fake", 5)


async def test_a_stream_tells_more_where_it_is_asked() -> None:
    async with served() as node:
        wish = generate_pb2.StreamRequest(request=asked("word " * 1500, candidates=3))
        kinds = {event.WhichOneof("event") async for event in node.generate.Stream(wish)}
        assert not kinds & {"progress", "leader"}
        wish.request.messages[0].content = "more " * 1500  # nothing of which is held
        wish.wishes.progress = wish.wishes.leader = True
        events = [event async for event in node.generate.Stream(wish)]
        progress = [e.progress for e in events if e.HasField("progress")]
        assert progress
        assert all(0 < p.computed_tokens < p.prompt_tokens for p in progress)
        leaders = [e.leader for e in events if e.HasField("leader")]
        assert [x.finished for x in leaders] == list(range(1, len(leaders) + 1))
        assert {(x.answer != "", x.share) for x in leaders} == {(True, 1.0)}
        assert {x.candidate_id for x in leaders} <= {1, 2, 3}


async def test_a_poll_tells_what_is_written_where_it_is_asked() -> None:
    async with served(FakeSpec(answers=("one two",))) as node:
        for texts in (False, True):
            wish = vote_pb2.PollRequest(
                messages=[types_pb2.Message(role="user", content="hi")], candidates=[3], strategy="majority"
            )
            wish.texts = texts
            wish.params.seed = 1
            events = [event async for event in node.peer.poll(wish)]
            said = "".join(e.token.text for e in events if e.HasField("token") and e.token.candidate_id == 3)
            assert said == ("one two" if texts else "")
            assert events[-1].ballots.tally.finished == len(events[-1].ballots.ballots) == 1


async def test_log_probabilities_are_streamed_with_their_text() -> None:
    async with served() as node:
        params = types_pb2.SamplingParams(logprobs=True, top_logprobs=2)
        stream = node.generate.Stream(generate_pb2.StreamRequest(request=asked("a b c", candidates=1, params=params)))
        events = [event async for event in stream]
        tokens = [event.token for event in events if event.WhichOneof("event") == "token"]
        assert "".join(t.text for t in tokens) == events[-1].done.text == "echo: a b c"
        streamed = [entry for t in tokens for entry in t.logprobs]
        assert [(e.token, e.bytes) for e in streamed] == [(w, w.encode()) for w in ("echo:", " a", " b", " c")]
        assert all(e.logprob == pytest.approx(-0.1) and len(e.top_logprobs) == 2 for e in streamed)
        assert all(e.top_logprobs[0].id == e.id for e in streamed)
        [candidate] = events[-1].done.candidates
        assert list(candidate.logprobs) == streamed
        with refused("INVALID_ARGUMENT", "top_logprobs is 2, but logprobs is false"):
            await node.generate.Generate(asked(params=types_pb2.SamplingParams(top_logprobs=2)))


async def test_status() -> None:
    async with served() as node:
        await node.store.add("t", Entry(Version(0, 3, OURS), messages=(Message("user", "hi"),), tokens=7))
        for replica in (OURS, OTHERS):
            node.store.add_replica("t", Version(0, 3, OURS), replica)
        status = await mesh_pb2_grpc.MeshStub(node.channel).Status(mesh_pb2.StatusRequest())
        assert [(n.id, n.name, n.model) for n in status.nodes] == [(OURS, "me", "fake")]
        assert [(t.topic, t.version.turn, t.tokens, t.bytes) for t in status.topics] == [("t", 3, 7, 2)]
        assert list(status.topics[0].replicas) == [OURS, OTHERS]
        assert list(status.topics[0].away) == [OTHERS], "nobody of that id answers"
        sync = kvsync_pb2_grpc.KVSyncStub(node.channel)
        [listed] = (await sync.List(kvsync_pb2.ListRequest())).topics
        assert list(listed.away) == [OTHERS]
        [for_a_peer] = (await node.peer.kvsync.List(kvsync_pb2.ListRequest())).topics
        assert list(for_a_peer.away) == []
        assert (status.slots.used, status.slots.free, status.mesh_id, status.version) == (0, 16, "mesh-1", "1.2.3")


async def test_health_and_reflection() -> None:
    async with served() as node:
        health = health_pb2_grpc.HealthStub(node.channel)
        for serving in (True, False):
            await rpc.set_serving(node.health, is_mesh=False, serving=serving)
            for service in ("", "node.v1.Generate", "node.v1.Mesh"):
                found = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert (found.status == health_pb2.HealthCheckResponse.SERVING) is serving
        call = reflection_pb2_grpc.ServerReflectionStub(node.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        listed = {s.name for s in (await call.read()).list_services_response.service}
        call.cancel()
        assert {"node.v1.Generate", "node.v1.Mesh", "node.v1.KVSync", "grpc.health.v1.Health"} <= listed
        assert "node.v1.Vote" not in listed, "it is on the mesh listener only"
        with refused("NOT_FOUND", ""):
            await health.Check(health_pb2.HealthCheckRequest(service="node.v1.Vote"))


# ---- what does not ---------------------------------------------------------------------------------------------------


async def test_each_error_has_its_code() -> None:
    async with served() as node:
        with refused("INVALID_ARGUMENT", "messages is empty"):
            await node.generate.Generate(generate_pb2.GenerateRequest())
        with refused("INVALID_ARGUMENT", "candidates is 65"):
            await node.generate.Stream(generate_pb2.StreamRequest(request=asked(candidates=65))).read()
        with refused("INVALID_ARGUMENT", "the prompt is"):
            await node.generate.Generate(asked("word " * 5000))
        with refused("NOT_FOUND", "model 'gpt' is not loaded here; this node has 'fake'"):
            await node.generate.Generate(asked(model="gpt"))
        with refused("NOT_FOUND", "topic 'nowhere' is unknown here"):
            await node.generate.Generate(asked(topic="nowhere", append=True))
        with refused("INVALID_ARGUMENT", "0 texts: send 1 to 256"):
            await node.generate.Embed(generate_pb2.EmbedRequest())
        with refused("INVALID_ARGUMENT", "257 texts"):
            await node.generate.Embed(generate_pb2.EmbedRequest(texts=["x"] * 257))
        with refused("NOT_FOUND", "model 'gpt'"):
            await node.generate.Embed(generate_pb2.EmbedRequest(texts=["x"], model="gpt"))
        await node.generate.Generate(asked(request_id="r", candidates=1))
        with refused("INVALID_ARGUMENT", "request_id 'r' was used"):
            await node.generate.Generate(asked("other", request_id="r", candidates=1))


async def test_a_node_that_is_full_and_one_whose_model_fails() -> None:
    async with served(SLOW, queue_limit=1) as node:
        slow = {"candidates": 16, "params": types_pb2.SamplingParams(max_tokens=4000)}
        calls = []
        async with asyncio.timeout(60):
            for queued in (0, 1):
                calls.append(node.generate.Generate(asked(**slow)))
                while node.engine.free_sequences or node.engine.load.queued < queued:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        with refused("RESOURCE_EXHAUSTED", "try again later"):
            await node.generate.Generate(asked())
        for call in calls:
            call.cancel()
        await node.free()
    async with served(FakeSpec(fail_after=16)) as node:
        with refused("INTERNAL", "the fake backend fails"):
            await node.generate.Generate(asked())


async def test_a_defect_is_no_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with served() as node:
        monkeypatch.setattr(node.store, "list", lambda: 1 // 0)
        with refused("INTERNAL", "internal error: ZeroDivisionError; the node's log has more"):
            await mesh_pb2_grpc.MeshStub(node.channel).Status(mesh_pb2.StatusRequest())
        assert "ZeroDivisionError" in caplog.text


async def test_long_messages_reach_the_client_as_their_code() -> None:
    async with served() as node:
        role = types_pb2.Message(role="x" * 200_000, content="x")
        with refused("INVALID_ARGUMENT", "it must be one of system"):
            await node.generate.Generate(generate_pb2.GenerateRequest(messages=[role]))
        with refused("NOT_FOUND", "is not loaded here"):
            await node.generate.Generate(asked(model="ü" * 128))


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", asked("hi").SerializeToString().replace(b"hi", b"\xff\xfe")], ids=["bytes", "utf-8"]
)
async def test_what_is_no_message(data: bytes) -> None:
    async with served() as node:
        with refused("INVALID_ARGUMENT", "texts must be UTF-8"):
            await node.channel.unary_unary("/node.v1.Generate/Generate")(data)
        nested = b"\x0a" + bytes([len(data)]) + data
        with refused("INVALID_ARGUMENT", "not a valid message"):
            await node.channel.unary_stream("/node.v1.Generate/Stream")(nested).read()


async def test_what_is_not_there() -> None:
    async with served() as node:
        for method in ("/node.v1.Generate/Nothing", "/node.v1.Nothing/Generate", "/nothing"):
            with refused("UNIMPLEMENTED", ""):
                await node.channel.unary_unary(method)(b"")


async def test_calls_for_nodes_need_a_certificate() -> None:
    async with served() as node:
        mesh, vote = mesh_pb2_grpc.MeshStub(node.channel), vote_pb2_grpc.VoteStub(node.channel)
        with refused("UNAUTHENTICATED", "for nodes of the mesh"):
            await mesh.Hello(mesh_pb2.HelloRequest())
        with refused("UNAUTHENTICATED", "for nodes of the mesh"):
            await mesh.Probe(mesh_pb2.ProbeRequest())
        assert node.mesh.callers == []
        await node.peer.hello(mesh_pb2.HelloRequest())
        assert node.mesh.callers == [OTHERS], "who calls is what its certificate says"
        wish = vote_pb2.PollRequest(messages=asked().messages, candidates=[1], strategy="majority")
        sync = kvsync_pb2_grpc.KVSyncStub(node.channel)
        for call in (
            sync.Append(kvsync_pb2.AppendRequest()),
            sync.Offer(kvsync_pb2.OfferRequest()),
            sync.Push(iter([kvsync_pb2.PushRequest()])),
            sync.Pull(kvsync_pb2.PullRequest()).read(),
        ):
            with refused("UNAUTHENTICATED", "for nodes of the mesh"):
                await call
        with refused("UNAUTHENTICATED", "certificate"):
            await vote.Poll(wish).read()
        with refused("UNAUTHENTICATED", "certificate"):
            await vote.Decide(vote_pb2.DecideRequest(topic="t"))
        assert node.store.list() == []


# ---- clients that leave, deadlines -----------------------------------------------------------------------------------


async def test_a_client_that_leaves_frees_its_sequences() -> None:
    long = types_pb2.SamplingParams(max_tokens=4000)
    async with served(SLOW) as node:
        call = node.generate.Stream(generate_pb2.StreamRequest(request=asked(candidates=4, params=long)))
        while (await call.read()).WhichOneof("event") != "token":
            pass
        assert node.engine.free_sequences == 12
        call.cancel()
        await node.free()
        unary = node.generate.Generate(asked(candidates=4, params=long))
        async with asyncio.timeout(60):
            while node.engine.free_sequences == 16:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        unary.cancel()
        await node.free()


async def test_a_deadline_gets_the_best_there_is() -> None:
    long = types_pb2.SamplingParams(max_tokens=4000)
    async with served(SLOW) as node:
        for _ in range(10):  # a machine that stands still for a quarter of a second misses the moment
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await node.generate.Generate(asked(candidates=2, params=long), timeout=1.0)
                break
        assert answer.finish_reason == "deadline"
        assert answer.text.startswith("w w")
        await node.free()
    is_over = threading.Event()
    async with served(FakeSpec(prefill_per_s=20)) as node:
        node.engine.backend._sleep = lambda _: is_over.wait(60)  # type: ignore[attr-defined]
        try:
            with refused("DEADLINE_EXCEEDED", ""):
                await node.generate.Generate(asked("a b c d e f g"), timeout=0.4)
        finally:
            is_over.set()


# ---- between nodes ---------------------------------------------------------------------------------------------------


async def test_a_poll_over_mutual_tls() -> None:
    async with served(FakeSpec(answers=("42",))) as node:
        wish = vote_pb2.PollRequest(
            messages=asked("What is 6 * 7?").messages, candidates=[5, 9], strategy="majority", request_id="r"
        )
        [got] = [event async for event in node.peer.poll(wish, 60)]
        assert sorted(b.candidate.id for b in got.ballots.ballots) == [5, 9]
        assert list(got.ballots.tally.clusters[0].members) == [5, 9]
        assert got.ballots.free_sequences == 16
        with pytest.raises(InvalidRequest, match="poll asks for 0 candidates"):
            await anext(node.peer.poll(vote_pb2.PollRequest(), 60))


async def test_a_poll_of_one_candidate_is_one_message() -> None:
    async with served(FakeSpec(answers=("42",))) as node:
        wish = vote_pb2.PollRequest(messages=asked("What is 6 * 7?").messages, candidates=[5], strategy="majority")
        cast = await node.peer.vote.Cast(vote_pb2.CastRequest(poll=wish))
        assert [b.candidate.id for b in cast.ballots.ballots] == [5]
        assert cast.ballots.tally.finished == 1
        [got] = [event async for event in node.peer.poll(wish, 60)]
        assert got.ballots.ballots[0].candidate.text == cast.ballots.ballots[0].candidate.text == "42"
        assert got.ballots.free_sequences == 16
        with refused("INVALID_ARGUMENT", "2 candidates, or texts: those are polled"):
            wish.candidates.append(9)
            await node.peer.vote.Cast(vote_pb2.CastRequest(poll=wish))


@pytest.mark.parametrize("ids", [[1, 2], [1]])
async def test_a_poll_that_is_left_frees_its_sequences(ids: list[int]) -> None:
    async with served(SLOW) as node:
        long = types_pb2.SamplingParams(max_tokens=4000)
        wish = vote_pb2.PollRequest(messages=asked().messages, candidates=ids, strategy="majority", params=long)
        poll = asyncio.create_task(anext(node.peer.poll(wish, 30)))
        async with asyncio.timeout(60):
            while node.engine.free_sequences == 16:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)
        await node.free()


def decision(**change: Any) -> vote_pb2.DecideRequest:
    fields: dict[str, Any] = {"topic": "t", "version": types_pb2.Version(turn=2, node_id=OTHERS)}
    return vote_pb2.DecideRequest(**(fields | change))


def turn(**change: Any) -> kvsync_pb2.AppendRequest:
    talk = [types_pb2.Message(role="user", content="hi"), types_pb2.Message(role="assistant", content="yes")]
    fields: dict[str, Any] = {"topic": "t", "messages": talk, "version": types_pb2.Version(turn=2, node_id=OTHERS)}
    return kvsync_pb2.AppendRequest(**(fields | change))


def version(epoch: int, number: int, node: str = OTHERS) -> types_pb2.Version:
    return types_pb2.Version(epoch=epoch, turn=number, node_id=node)


async def test_a_turn_is_held_and_its_topic_shown_and_forgotten() -> None:
    async with served() as node:
        sync, client = node.peer.kvsync, kvsync_pb2_grpc.KVSyncStub(node.channel)
        answer = await sync.Append(turn(length=5))
        assert (answer.held.turn, answer.orphan) == (2, False)
        assert not answer.stored, "this node has no disk"
        assert [m.content for m in node.store.get("t").messages] == ["hi", "yes"]
        orphan = await sync.Append(turn(version=version(0, 4), parent=version(0, 3)))
        assert (orphan.orphan, orphan.held.turn) == (True, 2)
        branch = await sync.Append(turn(version=version(0, 1, "c" * 16)))
        assert branch.held.turn == 2, "an older turn is a branch"
        [info] = (await client.List(kvsync_pb2.ListRequest())).topics
        assert (info.topic, info.version, info.tokens) == ("t", version(0, 2), 5)
        shown = await client.Show(kvsync_pb2.ShowRequest(topic="t"))
        assert [m.content for m in shown.messages] == ["hi", "yes"]
        assert [b.version for b in shown.branches] == [version(0, 1, "c" * 16)]
        gone = await client.Forget(kvsync_pb2.ForgetRequest(topic="t"))
        assert gone.version == version(1, 3, OURS), "its last node is not to be seen, so this one takes over"
        assert not (await client.List(kvsync_pb2.ListRequest())).topics
        assert [t.forgotten for t in (await sync.List(kvsync_pb2.ListRequest())).topics] == [True]
        for call in (
            client.Show(kvsync_pb2.ShowRequest(topic="t")),
            client.Forget(kvsync_pb2.ForgetRequest(topic="t")),
        ):
            with refused("NOT_FOUND", "forgotten"):
                await call
        assert (await sync.Append(turn(version=version(0, 9)))).held == version(1, 3, OURS), "it stays forgotten"
        assert node.store.list() == []


async def test_a_peer_pulls_the_turns_that_it_lacks() -> None:
    async with served() as node:
        sync = node.peer.kvsync
        await sync.Append(turn(version=version(0, 1)))
        await sync.Append(turn(version=version(0, 2), parent=version(0, 1)))
        for held, expected in ((None, [1, 2]), (version(0, 1), [2]), (version(0, 2), []), (version(7, 7), [])):
            wish = kvsync_pb2.PullRequest(topic="t", version=held)
            got = [part async for part in sync.Pull(wish)]
            assert [part.turn.version.turn for part in got] == expected
        assert [part async for part in sync.Pull(kvsync_pb2.PullRequest(topic="u"))] == []


async def test_a_node_without_snapshots_wants_none() -> None:
    async with served() as node:
        sync = node.peer.kvsync
        assert (await sync.Offer(kvsync_pb2.OfferRequest(header=b"x"))).reason == "unwanted"
        pushed = await sync.Push(iter([kvsync_pb2.PushRequest(header=b"x")]))
        assert (pushed.accepted, pushed.reason) == (False, "unwanted")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"version": version(0, 0)}, "no turn's"),
        ({"version": version(0, 1, "")}, "no turn's"),
        ({"parent": version(0, 2)}, "no turn's"),
        ({"version": types_pb2.Version(turn=2**64 - 1, node_id=OTHERS)}, "out of range"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [types_pb2.Message(role="user", content="hi")]}, "must be the assistant's"),
        ({"messages": [types_pb2.Message(role="root", content="hi")]}, "role is 'root'"),
        ({"topic": "a\nb"}, "control characters"),
        ({"topic": ""}, "topic is empty"),
        ({"topic": "x" * 257}, "bytes long"),
    ],
    ids=range(10),
)
async def test_a_turn_that_makes_no_sense_is_not_held(change: dict[str, Any], line: str) -> None:
    async with served() as node:
        with pytest.raises(InvalidRequest, match=line):
            await node.peer.call(node.peer.kvsync.Append, turn(**change), 5.0)
        assert node.store.list() == []


async def test_a_decision_says_what_is_held() -> None:
    async with served() as node:
        early = await node.peer.decide(decision())
        assert (early.committed, early.held.turn) == (False, 0), "a turn comes by Append alone"
        await node.peer.kvsync.Append(turn())
        answer = await node.peer.decide(decision())
        assert (answer.committed, answer.held.turn) == (True, 2)
        assert not (await node.peer.decide(decision(version=version(0, 3)))).committed
        assert not (await node.peer.decide(vote_pb2.DecideRequest())).committed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"version": types_pb2.Version(turn=2, node_id=OURS)}, "in its own name only"),
        ({"version": types_pb2.Version(turn=2)}, "in its own name only"),
        ({"version": types_pb2.Version(turn=2**64 - 1, node_id=OTHERS)}, "out of range"),
        ({"topic": "a\nb"}, "control characters"),
    ],
    ids=range(4),
)
async def test_a_decision_that_makes_no_sense_is_refused(change: dict[str, Any], line: str) -> None:
    async with served() as node:
        with pytest.raises(InvalidRequest, match=line):
            await node.peer.decide(decision(**change))
        assert node.store.list() == []


async def test_a_node_of_another_mesh_gets_nowhere() -> None:
    async with served() as node:
        stranger = Peer(Identity(new_token(), OTHERS), node.peer.address, OURS)
        with pytest.raises(Unauthenticated):
            await stranger.decide(decision())
        await stranger.close()
        assert node.store.list() == []
