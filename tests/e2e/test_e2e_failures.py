"""Nodes that die, hang or are left, in the middle of a vote: what the client gets, and that nothing keeps running."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import grpc
import pytest
from swarm import SOON_S, Node, Swarm, in_time, request, slow, together, until

from node.v1 import generate_pb2

Pair = tuple[Swarm, list[Node]]
# Every ballot counts until the end, so nothing but its end ends a vote.
WHOLE = {"strategy": "quality"}
AT_ONCE_S = 40.0  # what is stopped would have needed a minute


def begin(node: Node, timeout: float = SOON_S, **fields: object) -> tuple[grpc.Call, Iterator, dict[str, list[int]]]:
    """A streamed request whose candidates are being written on both nodes; also who writes which."""
    call = node.client.generate.Stream(generate_pb2.StreamRequest(request=request("Why?", **fields)), timeout=timeout)
    plan = next(call)
    shares = {s.node: list(s.candidates) for s in plan.plan.shares}
    assert next(call).WhichOneof("event") == "token"
    return call, call, shares


def both_work(one: Node, two: Node, shares: dict[str, list[int]]) -> None:
    """Wait until each node computes its share; shares go by measured speed, so a very slow node has none."""
    assert set(shares) == {one.id, two.id}, f"no share for one of them: {one.client.status()}"
    for node in (one, two):
        until(lambda node=node: node.used() >= len(shares[node.id]), f"{node.id} works")  # type: ignore[misc]


def both_free(*nodes: Node) -> None:
    for node in nodes:
        until(lambda node=node: node.used() == 0, f"{node.id} is free", AT_ONCE_S)  # type: ignore[misc]


def done(events: Iterator) -> generate_pb2.GenerateResponse:
    *_, last = events
    assert last.WhichOneof("event") == "done"
    return last.done


def test_a_peer_is_killed(own: Swarm) -> None:
    one, two = own.up(2, *slow(60, 20, "42", "41"))
    asking = own.popen("ask", "Why?", "--json", "--strategy", "quality", "--address", one.address)
    until(lambda: min(one.used(), two.used()) >= 4, "both work for the command")
    _, events, shares = begin(one, **WHOLE)
    until(lambda: min(one.used(), two.used()) >= 8, "both work for both")
    two.signal(signal.SIGKILL)
    response = done(events)
    assert {c.node for c in response.candidates} == {one.id}
    assert sorted(c.id for c in response.candidates) == shares[one.id]
    (loss,) = response.outcome.lost
    assert loss.node == two.id
    assert list(loss.candidates) == shares[two.id]
    assert loss.reason
    assert response.outcome.planned == 8
    assert response.outcome.finished == len(shares[one.id])
    assert response.text.endswith(("answer: 42", "answer: 41"))
    out, err = asking.communicate(timeout=SOON_S)
    assert (asking.returncode, err) == (0, b"")
    assert [x["node"] for x in json.loads(out)["outcome"]["lost"]] == [two.id]
    # The next vote is planned without it.
    until(lambda: one.peers() == set(), "a killed node is gone")
    both_free(one)


def test_a_peer_of_the_real_model_is_killed(own: Swarm) -> None:
    """The same with llama.cpp; a grammar without an end keeps the model writing until max_tokens."""
    one, two = own.up(2)
    long = {"grammar": "root ::= [a-z ] root", "max_tokens": 150}
    _, events, shares = begin(one, params=long, candidates=12, **WHOLE)
    both_work(one, two, shares)
    two.signal(signal.SIGKILL)
    response = done(events)
    assert {c.node for c in response.candidates} == {one.id}
    assert [(x.node, list(x.candidates)) for x in response.outcome.lost] == [(two.id, shares[two.id])]
    assert {(c.tokens, c.finish_reason) for c in response.candidates} == {(150, "length")}
    # And what a person sees of such a vote is one line, not a traceback.
    assert "Traceback" not in one.said()


def test_a_peer_hangs_and_the_client_has_a_deadline(own: Swarm) -> None:
    one, two = own.up(2, *slow(50, 20, "42", "41"))

    def ask() -> tuple[generate_pb2.GenerateResponse, dict[str, list[int]]]:
        _, events, shares = begin(one, timeout=6.0, **WHOLE)
        both_work(one, two, shares)
        two.signal(signal.SIGSTOP)
        try:
            return done(events), shares
        finally:  # it comes back as if nothing had been, and has nothing left to do
            two.signal(signal.SIGCONT)
            both_free(one, two)
            together(one, two)

    response, shares = in_time(ask)
    assert sorted(c.id for c in response.candidates) == shares[one.id]
    (loss,) = response.outcome.lost
    assert (loss.node, list(loss.candidates)) == (two.id, shares[two.id])


def test_the_coordinator_is_killed(own: Swarm) -> None:
    one, two = own.up(2, *slow(1200, 20, "42", "41"))
    _, events, shares = begin(one, **WHOLE)
    both_work(one, two, shares)
    one.signal(signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as e:
        done(events)
    assert e.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    both_free(two)


def test_a_clean_stop_in_the_middle_of_an_answer(own: Swarm) -> None:
    one, two = own.up(2, *slow(1200, 20, "42", "41"))
    _, events, shares = begin(one, **WHOLE)
    both_work(one, two, shares)
    assert own.end(one) == [0]
    with pytest.raises(grpc.RpcError):
        done(events)
    both_free(two)
    assert "Traceback" not in one.said() + two.said()


def test_a_client_that_leaves_frees_every_node(slows: Pair) -> None:
    _, (one, two) = slows
    for leave in ("cancel", "close"):
        call, _, shares = begin(one, **WHOLE)
        both_work(one, two, shares)
        if leave == "cancel":
            call.cancel()
        else:
            one.client.channel.close()
            one.client = type(one.client)(one.address)
        both_free(one, two)


def test_a_unary_client_that_leaves_frees_every_node(slows: Pair) -> None:
    _, (one, two) = slows
    call = one.client.generate.Generate.future(request("Why?", **WHOLE), timeout=SOON_S)
    until(lambda: one.used() >= 4 and two.used() >= 4, "both work")
    call.cancel()
    both_free(one, two)


def test_an_interrupted_command_frees_every_node(slows: Pair) -> None:
    made, (one, two) = slows
    asking = made.popen("ask", "Why?", "--strategy", "quality")
    until(lambda: one.used() >= 4 and two.used() >= 4, "both work")
    asking.send_signal(signal.SIGINT)
    out, err = asking.communicate(timeout=SOON_S)
    assert (asking.returncode, out, err) == (130, b"", b"")
    both_free(one, two)


def test_a_deadline_frees_every_node(slows: Pair) -> None:
    """What was written by then is the answer, and says so."""
    _, (one, two) = slows
    response = in_time(lambda: one.client.ask("Why?", timeout=2.5, **WHOLE))
    assert response.finish_reason == "deadline"
    assert response.text.startswith("thought0 thought1")
    assert any("deadline" in w for w in response.outcome.warnings)
    both_free(one, two)


def test_no_time_at_all(slows: Pair) -> None:
    _, (one, two) = slows
    with pytest.raises(grpc.RpcError) as e:
        one.client.ask("Why?", timeout=0.001)
    assert e.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    both_free(one, two)


def test_losers_stop_when_the_vote_is_decided(own: Swarm) -> None:
    """Three answers in four are short and agree; the long ones would take a minute."""
    thoughts = " ".join(f"thought{i}" for i in range(1200))
    spec = f"fake:answers=answer: 42|answer: 42|answer: 42|{thoughts} answer: 41,tokens_per_s=20"
    one, two = own.up(2, "--backend", "fake", "--model", spec)
    asked = generate_pb2.StreamRequest(request=request("Why?", candidates=24, strategy="majority", params={"seed": 4}))
    events = list(one.client.generate.Stream(asked, timeout=SOON_S))
    both_free(one, two)
    response = events[-1].done
    assert response.outcome.stopped_early
    assert response.outcome.finished < response.outcome.planned == 24
    assert response.text == "answer: 42"
    # With this seed the second and the ninth are long ones: they were cut off.
    assert any(e.WhichOneof("event") == "token" and "thought" in e.token.text for e in events)


def test_more_requests_than_sequences_wait_or_are_told_so(own: Swarm) -> None:
    node = own.start(*slow(6, 20, "42"), "--slots", "4", "--queue", "2", "--join", "none")
    own.ready(node)
    calls = [node.client.generate.Generate.future(request("Why?", candidates=4), timeout=SOON_S) for _ in range(16)]
    codes = [c.code() for c in calls]
    assert codes.count(grpc.StatusCode.OK) >= 2
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 1
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    both_free(node)
