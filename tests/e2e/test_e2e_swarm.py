"""Nodes find each other and vote; what the commands show of it."""

from __future__ import annotations

import json
import signal
from collections import Counter
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from swarm import SOON_S, Node, Swarm, never, request, shared, together, until

from node.mesh import local
from node.v1 import generate_pb2

Pair = tuple[Swarm, list[Node]]
SUM = "What is 12 + 30?"


def test_two_nodes_vote_together(llamas: Pair) -> None:
    """No flag but --join auto; quality counts every candidate, so all eight are there."""
    _, (one, two) = llamas
    response = shared(lambda: one.client.ask(SUM, strategy="quality"), lambda r: {c.node for c in r.candidates})
    assert response.outcome.planned == response.outcome.finished == 8
    assert not response.outcome.lost
    by_node = Counter(c.node for c in response.candidates)
    assert set(by_node) == {one.id, two.id}
    assert sorted(c.id for c in response.candidates) == list(range(1, 9))
    assert {c.finish_reason for c in response.candidates} <= {"stop", "length"}
    assert response.usage.candidate_tokens >= sum(c.tokens for c in response.candidates) > 0


def test_the_bundled_model_can_add(llamas: Pair) -> None:
    _, (one, two) = llamas
    for node in (one, two):
        response = node.client.ask(SUM)
        assert response.outcome.strategy == "majority"
        assert next(c.key for c in response.outcome.clusters) == "42"
        assert "42" in response.text
        assert response.outcome.planned == 8
        assert response.outcome.quorum


def test_a_local_vote_stays_here(llamas: Pair) -> None:
    _, (one, _) = llamas
    response = one.client.ask(SUM, scope=generate_pb2.SCOPE_LOCAL, strategy="quality")
    assert {c.node for c in response.candidates} == {one.id}
    assert response.outcome.planned == 4


def test_stream_is_plan_first_and_done_last(llamas: Pair) -> None:
    _, (one, two) = llamas
    asked = generate_pb2.StreamRequest(request=request(SUM, strategy="quality"))
    events = shared(
        lambda: list(one.client.generate.Stream(asked, timeout=SOON_S)),
        lambda events: {s.node for s in events[0].plan.shares},
    )
    kinds = [e.WhichOneof("event") for e in events]
    assert kinds[0] == "plan"
    assert kinds[-1] == "done"
    assert kinds.count("done") == kinds.count("plan") == kinds.count("local") == 1
    shares = {s.node: list(s.candidates) for s in events[0].plan.shares}
    assert list(shares) == [one.id, two.id]
    done = events[-1].done
    texts: dict[int, str] = {}
    for event in events:
        if event.WhichOneof("event") == "token":
            texts[event.token.candidate_id] = texts.get(event.token.candidate_id, "") + event.token.text
    mine = {c.id: c.text for c in done.candidates if c.node == one.id}
    assert sorted(texts) == sorted(mine) == shares[one.id]
    assert {id: text.strip() for id, text in texts.items()} == {id: text.strip() for id, text in mine.items()}
    voted = {e.candidate.id for e in events if e.WhichOneof("event") == "candidate"}
    assert voted == set(range(1, 9))


def test_ask_json_is_the_response(llamas: Pair) -> None:
    made, (one, two) = llamas

    def ask() -> dict[str, Any]:
        done = made.run("ask", SUM, "--json", "--strategy", "quality")
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)  # type: ignore[no-any-return]

    said = shared(ask, lambda said: {c["node"] for c in said["candidates"]})
    assert said["outcome"]["planned"] == 8
    assert {c["node"] for c in said["candidates"]} == {one.id, two.id}
    # The proto's own names, in full, also where a value is zero.
    assert set(said) == {f.name for f in generate_pb2.GenerateResponse.DESCRIPTOR.fields} - {"version"}
    assert set(said["candidates"][0]) >= {"mean_logprob", "latency_ms", "finish_reason", "tool_calls"}
    assert set(said["timings"]) == {"queue_ms", "prefill_ms", "first_token_ms", "total_ms"}


def test_ask_votes_in_a_pipe(llamas: Pair) -> None:
    made, (one, two) = llamas
    done = shared(
        lambda: made.run("ask", SUM, "--votes", "--strategy", "quality"),
        lambda done: {n.id for n in (one, two) if n.id[:4] in done.out},
    )
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    for word in ("answer", "votes", "share", "quality", "confidence", "margin", "8 of 8 finished"):
        assert word in done.out
    assert one.id[:4] in done.out
    assert two.id[:4] in done.out


def test_a_prompt_by_pipe(llamas: Pair) -> None:
    made, _ = llamas
    done = made.run("ask", stdin=SUM.encode())
    assert (done.code, done.err) == (0, "")
    assert "42" in done.out


def test_status_shows_both(llamas: Pair) -> None:
    made, nodes = llamas
    done = made.run("status", "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert {n["id"] for n in said["nodes"]} == {n.id for n in nodes}
    assert {n["state"] for n in said["nodes"]} == {"alive"}
    assert {n["address"] for n in said["nodes"]} == {n.mesh_address for n in nodes}
    assert len({n["fingerprint"] for n in said["nodes"]}) == 1
    assert said["slots"]["free"] + said["slots"]["used"] == 16  # parked ones are outside the context
    assert all(n["decode_tokens_per_s"] > 0 for n in said["nodes"])
    plain = made.run("status")
    assert plain.code == 0
    for node in nodes:
        assert node.mesh_address in plain.out


def test_the_banner_says_whether_another_machine_could_join(llamas: Pair) -> None:
    made, nodes = llamas
    for node in nodes:
        said = until(lambda node=node: node.said() if "Ask it something" in node.said() else "", "the banner")
        assert "No other machine can join" in said, "these are on loopback"
        assert "Another machine joins with" not in said
        assert made.run("token", "show").out.strip() not in said
        assert node.address in said
        assert "Traceback" not in said


def test_join_by_address_meets_everyone(fakes: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another home, so nothing on this machine points to the others but the address and the token."""
    made, (one, two) = fakes
    token = made.run("token", "show").out.strip()
    other = Swarm(tmp_path_factory.mktemp("third"))
    try:
        third = other.start("--backend", "fake", "--join", one.mesh_address, "--token", token)
        other.ready(third)
        together(one, two, third)
        response = third.client.ask("hello", strategy="quality")
        assert response.outcome.planned == 12
        assert {c.node for c in response.candidates} == {one.id, two.id, third.id}
        assert other.end(third) == [0]
        until(lambda: third.id not in one.peers() | two.peers(), "a node that leaves is gone from the others")
        assert third.id not in {n.id for n in one.client.status().nodes}
    finally:
        other.close()


def test_join_none_looks_for_nobody(own: Swarm) -> None:
    alone, other = (own.start("--backend", "fake", "--join", "none") for _ in range(2))
    own.ready(alone, other)
    # Twice as long as one that looks needs to find a node on its own machine.
    never(lambda: alone.peers() | other.peers(), "a node was found", 2 * local.WATCH_S)
    assert alone.client.ask("hello").outcome.planned == 4
    seeker = own.start("--backend", "fake", "--join", "auto")
    own.ready(seeker)
    together(alone, other, seeker)


def test_a_restart_keeps_the_id(own: Swarm) -> None:
    first = own.start("--backend", "fake", "--join", "none")
    own.ready(first)
    assert own.end(first) == [0]
    assert "Traceback" not in first.said()
    again = own.start("--backend", "fake", "--join", "none")
    own.ready(again)
    assert again.id == first.id
    again.signal(signal.SIGKILL)
    again.process.wait(SOON_S)
    third = own.start("--backend", "fake", "--join", "none")
    own.ready(third)
    assert third.id == first.id


def test_health_says_not_serving_at_the_end(own: Swarm) -> None:
    node = own.start("--backend", "fake", "--join", "none")
    own.ready(node)
    seen = node.client.health.Watch(health_pb2.HealthCheckRequest(service="node.v1.Generate"), timeout=SOON_S)
    assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
    node.signal(signal.SIGTERM)
    assert next(seen).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert node.process.wait(SOON_S) == 0
