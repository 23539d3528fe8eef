"""Requests that come twice, and conversations that go on, here or on another node."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from swarm import Node, Swarm, request, until

from node.v1 import kvsync_pb2, kvsync_pb2_grpc, types_pb2

Pair = tuple[Swarm, list[Node]]


def code(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as e:
        call()  # type: ignore[operator]
    return e.value.code()  # type: ignore[attr-defined,no-any-return]


def test_the_same_id_gets_the_same_answer(llamas: Pair) -> None:
    """The model's answers differ by chance, so an equal one is the same one."""
    _, (one, _) = llamas
    ask = {"strategy": "quality", "params": {"temperature": 2.0}, "request_id": "twice"}
    first = one.client.ask("Tell me something.", **ask)
    again = one.client.ask("Tell me something.", **ask)
    assert again == first
    other = one.client.ask("Tell me something.", **(ask | {"request_id": "other"}))
    assert [c.text for c in other.candidates] != [c.text for c in first.candidates]


def test_an_id_belongs_to_one_request(fakes: Pair) -> None:
    _, (one, _) = fakes
    one.client.ask("first", request_id="used")
    with pytest.raises(grpc.RpcError) as e:
        one.client.ask("second", request_id="used")
    assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "used" in e.value.details()  # type: ignore[attr-defined]


def test_the_same_id_at_the_same_time(fakes: Pair) -> None:
    """A topic shows that there was one turn."""
    _, (one, _) = fakes
    answers = []

    def ask() -> None:
        answers.append(one.client.ask("hello", request_id="together", topic="together"))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(a == answers[0] for a in answers)
    assert answers[0].version.turn == 1


def users(node: Node, topic: str) -> tuple[list[str], int]:
    """What was asked in a topic, and how many branches lost, as a node shows it."""
    stub = kvsync_pb2_grpc.KVSyncStub(node.client.channel)
    shown = stub.Show(kvsync_pb2.ShowRequest(topic=topic), timeout=60)
    return [m.content for m in shown.messages if m.role == "user"], len(shown.branches)


@pytest.mark.parametrize("apart_s", [0.0, 0.001, 0.01, 0.1, None])
def test_the_same_id_at_two_nodes_is_one_turn(llamas: Pair, apart_s: float | None) -> None:
    """At once, a moment apart, and one after the other. The model's answers differ by chance, so an equal one is the
    same one. Nodes wait a quarter of a second for each other's word: on a machine that is busier than that there may be
    two turns, but hardly six times."""
    _, nodes = llamas

    def ask_both() -> str:
        """A new topic that both are asked for; empty if there were two answers."""
        topic = f"both {time.monotonic()}"
        params = types_pb2.SamplingParams(temperature=2.0, max_tokens=60)
        answers = []

        def ask(node: Node) -> None:
            fields = {"params": params, "candidates": 2, "strategy": "quality"}
            answers.append(node.client.ask("Tell me something.", topic=topic, request_id=topic, **fields))

        threads = [threading.Thread(target=ask, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
            if apart_s is None:
                thread.join()
            else:
                time.sleep(apart_s)
        for thread in threads:
            thread.join()
        one, two = answers
        return topic if (one.text, one.version, one.version.turn) == (two.text, two.version, 1) else ""

    topic = next(filter(None, (ask_both() for _ in range(6))), "")
    assert topic, "one answer for both"
    for node in nodes:
        until(lambda node=node: users(node, topic) == (["Tell me something."], 0), "one turn and no branch")  # type: ignore[misc]


def test_a_topic_goes_on_here_and_on_the_other_node(fakes: Pair) -> None:
    """The fake model says what the last user message was; its prompt is as long as the whole conversation."""
    _, (one, two) = fakes
    first = one.client.ask("one two three", topic="garden")
    assert (first.version.epoch, first.version.turn, first.version.node_id) == (0, 1, one.id)
    second = one.client.ask("four", topic="garden", append=True)
    assert second.text == "echo: four"
    assert second.version.turn == 2
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + 4

    def held(node: Node) -> int:
        return next((t.version.turn for t in node.client.status().topics if t.topic == "garden"), 0)

    until(lambda: held(two) == 2, "the other node holds the topic")
    third = two.client.ask("five", topic="garden", append=True)
    assert (third.version.turn, third.version.node_id) == (3, two.id)
    assert third.usage.prompt_tokens > second.usage.prompt_tokens + 4
    until(lambda: held(one) == 3, "and the first one what was said there")
    assert one.client.ask("six", topic="garden", append=True).version.turn == 4


def test_a_node_without_a_share_hears_of_the_topic_too(fakes: Pair) -> None:
    _, (one, two) = fakes
    first = one.client.ask("hello", topic="single", candidates=1)
    assert {c.node for c in first.candidates} == {one.id}
    until(lambda: any(t.topic == "single" for t in two.client.status().topics), "the other node holds the topic")
    assert two.client.ask("again", topic="single", append=True).version.turn == 2


def test_a_topic_may_begin_anew(fakes: Pair) -> None:
    _, (one, _) = fakes
    first = one.client.ask("a b c d e f", topic="anew")
    again = one.client.ask("a", topic="anew")
    assert again.usage.prompt_tokens < first.usage.prompt_tokens
    assert again.version.turn == 2


def test_an_unknown_topic(fakes: Pair) -> None:
    _, (one, _) = fakes
    assert code(lambda: one.client.ask("go on", topic="nowhere", append=True)) is grpc.StatusCode.NOT_FOUND
    assert all(t.topic != "nowhere" for t in one.client.status().topics)


def test_two_topics_stay_apart(llamas: Pair) -> None:
    _, (one, _) = llamas
    one.client.ask("What is 12 + 30?", topic="sums")
    one.client.ask("What is the capital of France?", topic="cities")
    sizes = {t.topic: t.tokens for t in one.client.status().topics}
    one.client.ask("What is 1 + 1?", topic="sums", append=True)
    after = {t.topic: t.tokens for t in one.client.status().topics}
    assert after["sums"] > sizes["sums"]
    assert after["cities"] == sizes["cities"]


def test_the_command_goes_on_with_a_topic_on_another_node(fakes: Pair) -> None:
    made, (one, two) = fakes
    for turn, node in enumerate((one, two, one), 1):
        done = made.run("ask", "hello", "--topic", "moving", "--address", node.address)
        assert (done.code, done.out) == (0, "echo: hello\n")
        # A peer that stood still for a quarter of a second is told of.
        assert [line for line in done.err.splitlines() if "durability: no peer had this turn" not in line] == []
        for each in (one, two):
            until(
                lambda each=each, turn=turn: any(  # type: ignore[misc]
                    t.topic == "moving" and t.version.turn == turn for t in each.client.status().topics
                ),
                f"{each.id} holds turn {turn}",
            )


def test_embeddings(llamas: Pair) -> None:
    from node.v1 import generate_pb2

    _, (one, two) = llamas
    texts = ["the cat sat on the mat", "the cat sat on the mat", "12 + 30"]
    got = [n.client.generate.Embed(generate_pb2.EmbedRequest(texts=texts), timeout=60) for n in (one, two)]
    vectors = [e.values for e in got[0].embeddings]
    assert len(vectors) == 3
    assert vectors[0] == pytest.approx(vectors[1])
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0, rel=1e-3)
    assert sum(a * b for a, b in zip(vectors[0], vectors[2], strict=True)) < 0.999
    assert list(got[1].embeddings[2].values) == pytest.approx(list(vectors[2]), abs=1e-3)


def test_a_model_by_name(llamas: Pair) -> None:
    _, (one, _) = llamas
    assert one.client.ask("What is 1 + 1?", model="conclave-demo").text
    assert code(lambda: one.client.ask("hello", model="gpt-9")) is grpc.StatusCode.NOT_FOUND


def test_a_request_by_hand_is_the_request(fakes: Pair) -> None:
    """What the harness sends is what the proto says."""
    _, (one, _) = fakes
    sent = request("hello", candidates=3, strategy="majority")
    response = one.client.generate.Generate(sent, timeout=60)
    assert response.outcome.planned == 3
    assert response.request_id
