"""Topics: the greatest version wins wherever it comes from, and memory has an end."""

import itertools

import pytest

from node import store as store_module
from node.errors import NotFound
from node.store import Store, Topic
from node.types import Message, ToolCall, Version


def topic(name: str, version: Version, text: str = "hi") -> Topic:
    return Topic(name, version, (Message("user", text), Message("assistant", "yes")))


VERSIONS = [Version(0, 1, "b"), Version(0, 2, "a"), Version(0, 2, "b"), Version(1, 1, "a")]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_greatest_version_wins_in_any_order(order: tuple[int, ...]) -> None:
    store = Store()
    for at in order:
        held = store.version("t")
        assert store.commit(topic("t", VERSIONS[at], str(at))) is (VERSIONS[at] >= held)
    assert store.version("t") == VERSIONS[3]
    assert store.get("t").messages[0].content == "3"


def test_the_same_version_again_is_held() -> None:
    store = Store()
    assert store.commit(topic("t", VERSIONS[0]))
    assert store.commit(topic("t", VERSIONS[0]))
    assert len(store.list()) == 1


def test_what_is_not_held() -> None:
    store = Store()
    assert store.version("t") == Version()
    assert store.list() == []
    with pytest.raises(NotFound, match="topic 't' is unknown here"):
        store.get("t")


def test_the_list_is_by_name_and_counts_bytes() -> None:
    store = Store()
    call = Message("assistant", "", (ToolCall("add", '{"a": 1}'),))
    store.commit(Topic("b", Version(0, 1, "n"), (Message("user", "ü"), call), tokens=7, replicas=("n", "m")))
    store.commit(topic("a", Version(0, 3, "n")))
    a, b = store.list()
    assert (a.topic, a.version, a.bytes) == ("a", Version(0, 3, "n"), 5)
    assert (b.topic, b.tokens, b.bytes, b.replicas) == ("b", 7, 2 + 3 + 8, ("n", "m"))


def test_the_longest_unused_topic_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_TOPICS", 3)
    store = Store()
    for name in "abc":
        store.commit(topic(name, VERSIONS[0]))
    store.get("a")
    store.version("b")  # asking for a version is no use of it
    store.commit(topic("d", VERSIONS[0]))
    assert [t.topic for t in store.list()] == ["a", "c", "d"]


def test_bytes_make_room_too_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_BYTES", 1000)
    store = Store()
    for turn in range(1, 50):
        store.commit(topic("a", Version(0, turn, "n"), "x" * 400))  # one topic that is replaced fills nothing
    store.commit(topic("b", VERSIONS[0], "x" * 400))
    assert [t.topic for t in store.list()] == ["a", "b"]
    store.commit(topic("c", VERSIONS[0], "x" * 400))
    assert [t.topic for t in store.list()] == ["b", "c"]
    store.commit(topic("huge", VERSIONS[0], "x" * 4000))
    assert [t.topic for t in store.list()] == ["huge"], "the turn that is being answered is always held"


def test_who_else_holds_a_topic() -> None:
    store = Store()
    store.commit(topic("t", VERSIONS[0]))
    store.add_replica("t", VERSIONS[0], "b")
    store.add_replica("t", VERSIONS[0], "b")
    store.add_replica("t", VERSIONS[1], "c")  # of a version that is not held
    store.add_replica("u", VERSIONS[0], "c")
    assert [(t.topic, t.replicas) for t in store.list()] == [("t", ("b",))]
