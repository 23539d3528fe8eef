"""`topics show`: what the other side of a partition said, told apart from the conversation."""

from collections.abc import Callable

import pytest
from fakenode import Ran

from node.cli import topics
from node.v1 import kvsync_pb2, types_pb2

Run = Callable[..., Ran]
MAIN = ["my boat is called Argo", "noted", "hi", "hello", "thank you", "you are welcome"]


def said(*texts: str) -> list[types_pb2.Message]:
    return [types_pb2.Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]


def version(turn: int, epoch: int = 0) -> types_pb2.Version:
    return types_pb2.Version(epoch=epoch, turn=turn, node_id="b" * 10)


@pytest.mark.parametrize(
    ("branch", "parts", "shown"),
    [
        (
            [*MAIN[:2], "what is it called?", "Argo"],
            "parts from the above after 1 turn",
            ["what is it called?", "Argo"],
        ),
        ([*MAIN[:4], "thank you", "any time"], "parts from the above after 2 turns", ["thank you", "any time"]),
        (["something else", "yes"], "is apart from the start", ["something else", "yes"]),
        ([*MAIN, "and?", "and what?"], "parts from the above after 3 turns", ["and?", "and what?"]),
    ],
)
def test_a_branch_is_shown_from_where_it_parts(
    run: Run, monkeypatch: pytest.MonkeyPatch, branch: list[str], parts: str, shown: list[str]
) -> None:
    response = kvsync_pb2.ShowResponse(
        info=types_pb2.TopicInfo(topic="boat", version=version(3, 1)),
        messages=said(*MAIN),
        branches=[kvsync_pb2.Branch(version=version(4), messages=said(*branch))],
    )
    monkeypatch.setattr(topics, "_ask", lambda *_: (response, {"b" * 10: "bob"}))
    out = run("topics", "show", "boat").out
    above, line, below = out.partition("\nbranch 4, made by bob, ")
    assert line, out
    assert above.count("user: ") == 3
    assert f"it {parts} and is no part of the conversation:" in " ".join(below.split())
    roles = ("user", "assistant") * 3
    assert below.count("user: ") == len(shown) // 2
    assert all(f"{role}: {text}" in below for role, text in zip(roles, shown, strict=False))


def test_a_list_says_of_which_topics_something_is_kept_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    response = kvsync_pb2.ListResponse(
        topics=[
            types_pb2.TopicInfo(topic="boat", version=version(3), branches=2),
            types_pb2.TopicInfo(topic="car", version=version(1)),
        ]
    )
    monkeypatch.setattr(topics, "_ask", lambda *_: (response, {}))
    [boat, car] = [line for line in run("topics").out.splitlines() if line.startswith(("boat", "car"))]
    assert "boat (+2 apart)" in boat
    assert "apart" not in car
