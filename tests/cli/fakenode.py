"""A node made of canned messages, for tests of the command line; run as a program it is one that can be killed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from node import wire
from node.errors import ConclaveError
from node.v1 import generate_pb2, generate_pb2_grpc, mesh_pb2, mesh_pb2_grpc, types_pb2
from tests import loopback


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def nobody() -> str:
    """An address where nobody listens."""
    return f"{loopback.HOST}:{loopback.spare()}"


DIE = "die"
HERE, THERE = "aaaaaaaaaa", "bbbbbbbbbb"


class FakeNode(generate_pb2_grpc.GenerateServicer, mesh_pb2_grpc.MeshServicer):
    """Answers 42, but for the last candidate of several, which says 41. `fail` and `hang` change that."""

    def __init__(self, *, hang: bool = False, name: str = "hal") -> None:
        self.requests: list[generate_pb2.GenerateRequest] = []
        self.topics: dict[str, int] = {}
        self.fail: list[tuple[grpc.StatusCode, str] | ConclaveError | str | None] = []
        self.text = "The answer is 42."
        self.warnings: list[str] = []
        self.lost: list[types_pb2.Loss] = []
        self.notices: list[str] = []
        self.problems: list[str] = []
        self.models: list[types_pb2.ModelVote] = []
        self.records: list[mesh_pb2.ModelRecord] = []
        self.logprobs: list[types_pb2.TokenLogprob] = []
        self.reads = 0.0  # how long it reads a prompt before it writes, in seconds
        self.deciders: list[str] = []  # which nodes the versions of its turns name, if not this one
        self.hang = hang
        self.name = name
        self.other_state = "alive"
        self.away: list[str] = []
        self.made_ms = 0
        self.hanging = threading.Event()
        self.cancelled = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(8), options=wire.SERVER_OPTIONS)
        generate_pb2_grpc.add_GenerateServicer_to_server(self, self.server)
        mesh_pb2_grpc.add_MeshServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def stop(self) -> None:
        self.cancelled.set()
        self.server.stop(0).wait(5)

    def die_at(self, call: int) -> None:
        """Its listener and connections close at that call, the first being 1."""
        self.fail = [None] * (call - 1) + [DIE]

    def Stream(
        self, request: generate_pb2.StreamRequest, context: grpc.ServicerContext
    ) -> Iterator[generate_pb2.StreamResponse]:
        r = request.request
        self.requests.append(r)
        # Before anything is said: whoever hears it may leave at once. Who left before this began is not told of.
        if self.hang and not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        failure = self.fail.pop(0) if self.fail else None
        if failure == DIE:
            self.server.stop(0).wait(5)
            return
        if isinstance(failure, ConclaveError):
            context.set_trailing_metadata(wire.error_metadata(failure))
            context.abort(wire.status_code(failure), failure.message)
        if isinstance(failure, tuple):
            context.abort(*failure)
        if r.append and not r.begin and r.topic not in self.topics:
            context.abort(grpc.StatusCode.NOT_FOUND, f"topic {r.topic} is not known")
        ids = list(range(1, (r.candidates or 5) + 1))
        there = ids[len(ids) // 2 + 1 :]
        shares = [generate_pb2.Share(node=HERE, candidates=[i for i in ids if i not in there])]
        shares += [generate_pb2.Share(node=THERE, candidates=there)] if there else []
        yield generate_pb2.StreamResponse(plan=generate_pb2.Plan(request_id=r.request_id, shares=shares))
        for i in range(1, 8) if request.wishes.progress and self.reads else ():
            time.sleep(self.reads / 8)
            progress = generate_pb2.Progress(computed_tokens=1000 * i, cached_tokens=500, prompt_tokens=8000)
            yield generate_pb2.StreamResponse(progress=progress)
        for piece in ("The answer", " is"):
            yield generate_pb2.StreamResponse(token=generate_pb2.Token(candidate_id=1, text=piece))
        if self.hang:
            self.hanging.set()
            self.cancelled.wait(100)
            return
        yield generate_pb2.StreamResponse(token=generate_pb2.Token(candidate_id=1, text=" 42.\n"))
        candidates = [self._candidate(i, THERE if i in there else HERE, len(ids)) for i in ids]
        for candidate in candidates:
            yield generate_pb2.StreamResponse(candidate=candidate)
        self.topics[r.topic] = self.topics.get(r.topic, 0) + 1
        yield generate_pb2.StreamResponse(done=self._done(r, candidates))

    def _candidate(self, id: int, node: str, count: int) -> types_pb2.Candidate:
        is_odd = id == count > 1
        return types_pb2.Candidate(
            id=id,
            node=node,
            text="It is 41." if is_odd else self.text,
            answer="41" if is_odd else "42",
            tokens=7,
            logprobs=self.logprobs,
            model="tiny" if node == HERE else "big",
        )

    def _done(
        self, r: generate_pb2.GenerateRequest, candidates: list[types_pb2.Candidate]
    ) -> generate_pb2.GenerateResponse:
        with_winner = [c.id for c in candidates if c.answer == "42"]
        against = [c.id for c in candidates if c.answer == "41"]
        share = len(with_winner) / len(candidates)
        clusters = [
            types_pb2.Cluster(key=key, count=len(ids), weight=len(ids), medoid=key, medoid_id=ids[0], members=ids)
            for key, ids in (("42", with_winner), ("41", against))
            if ids
        ]
        outcome = types_pb2.Outcome(
            strategy="majority",
            winner=1,
            confidence=share,
            margin=share - len(against) / len(candidates),
            clusters=clusters,
            dissent=against,
            planned=len(candidates),
            finished=len(candidates),
            quorum=True,
            lost=self.lost,
            warnings=self.warnings,
            models=self.models,
        )
        decider = self.deciders.pop(0) if self.deciders else HERE
        return generate_pb2.GenerateResponse(
            text=self.text,
            finish_reason="stop",
            topic=r.topic,
            version=types_pb2.Version(turn=self.topics[r.topic], node_id=decider) if r.topic else None,
            outcome=outcome,
            candidates=candidates,
            usage=types_pb2.Usage(prompt_tokens=30, cached_tokens=20, completion_tokens=7, candidate_tokens=35),
            timings=types_pb2.Timings(prefill_ms=12, first_token_ms=15.5, total_ms=1234),
            request_id=r.request_id,
        )

    def Status(self, request: mesh_pb2.StatusRequest, context: grpc.ServicerContext) -> mesh_pb2.StatusResponse:
        def info(id: str, name: str, state: str = "alive") -> types_pb2.NodeInfo:
            return types_pb2.NodeInfo(
                id=id, name=name, model="tiny", backend="fake", state=state, sequences=16, free_sequences=12,
                load=0.25, address="127.0.0.1:7421", local_address=self.address, decode_tokens_per_s=50,
                round_trip_ms=1.5,
            )  # fmt: skip

        topics = [
            types_pb2.TopicInfo(
                topic=t, version=types_pb2.Version(turn=n), tokens=100, replicas=[HERE, THERE], away=self.away,
                made_ms=self.made_ms,
            )
            for t, n in self.topics.items()
            if t
        ]  # fmt: skip
        nodes = [info(HERE, self.name), info(THERE, "bob", self.other_state)]
        slots = mesh_pb2.Slots(used=4, parked=3, free=12)
        return mesh_pb2.StatusResponse(
            nodes=nodes, topics=topics, slots=slots, mesh_id="feedfeed", version="0.1.0", notices=self.notices,
            problems=self.problems,
            models=self.records,
            speeds=mesh_pb2.Speeds(
                prefill_tokens_per_s=500, restore_bytes_per_s=2e9, kv_bytes_per_token=1e4, worth_tokens=3,
                links=[mesh_pb2.Link(node=THERE, bytes_per_s=1.1e8, worth_tokens=70), mesh_pb2.Link(node=HERE)],
            ),
        )  # fmt: skip


if __name__ == "__main__":
    print(FakeNode(hang="--hang" in sys.argv, name="victim").address, flush=True)
    sys.stdin.read()
