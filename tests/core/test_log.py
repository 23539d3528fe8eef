"""A topic's log: the greatest version wins in any order, nothing acknowledged is lost, what is forgotten stays so."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.log import NOTHING, Entry, Log, Taken
from node.types import Message, Version


def v(epoch: int, turn: int, node: str = "a") -> Version:
    return Version(epoch, turn, node)


def entry(version: Version, parent: Version = NOTHING, text: str = "", **more: bool) -> Entry:
    said = text or f"{version.epoch}.{version.turn}{version.node_id}"
    return Entry(version, parent, (Message("user", said), Message("assistant", said)), **more)


def texts(log: Log, version: Version | None = None) -> list[str]:
    return [m.content for m in log.conversation(version)[::2]]


CHAIN = [entry(v(0, 1)), entry(v(0, 2), v(0, 1)), entry(v(0, 3), v(0, 2))]


def test_turns_in_order_are_the_conversation() -> None:
    log = Log(CHAIN)
    assert log.head == v(0, 3)
    assert texts(log) == ["0.1a", "0.2a", "0.3a"]
    assert log.branches() == []
    assert [e.version.turn for e in log.after(v(0, 1))] == [2, 3]
    assert [e.version.turn for e in log.after(NOTHING)] == [1, 2, 3]
    assert log.after(v(0, 3)) == []


def test_an_entry_needs_what_it_follows() -> None:
    log = Log()
    assert log.add(CHAIN[1]) is Taken.ORPHAN
    assert log.head == NOTHING
    assert log.add(CHAIN[0]) is Taken.HEAD
    assert log.add(CHAIN[1]) is Taken.HEAD
    assert log.add(CHAIN[1]) is Taken.KNOWN


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_after_a_partition_both_sides_come_to_the_same_and_lose_nothing(order: tuple[int, ...]) -> None:
    """b held a for dead, so its turn has the greater epoch; a's are a branch on both."""
    sides = [
        entry(v(0, 2), v(0, 1)),
        entry(v(0, 3), v(0, 2)),
        entry(v(1, 2, "b"), v(0, 1)),
        entry(v(1, 3, "b"), v(1, 2, "b")),
    ]
    log = Log(CHAIN[:1])
    waiting = [sides[i] for i in order]
    while waiting:  # an orphan is sent again after what it follows
        waiting = [e for e in waiting if log.add(e) is Taken.ORPHAN]
    assert log.head == v(1, 3, "b")
    assert texts(log) == ["0.1a", "1.2b", "1.3b"]
    assert log.branches() == [v(0, 3)]
    assert texts(log, v(0, 3)) == ["0.1a", "0.2a", "0.3a"]
    # Who holds the branch gets all from where the conversation begins; who holds nothing too.
    assert [e.version for e in log.after(v(0, 3))] == [v(0, 1), v(1, 2, "b"), v(1, 3, "b")]


def test_a_conversation_that_begins_anew_keeps_what_was_in_the_log_only() -> None:
    log = Log([*CHAIN, entry(v(0, 4), v(0, 3), "new", anew=True), entry(v(0, 5), v(0, 4))])
    assert texts(log) == ["new", "0.5a"]
    assert log.branches() == []
    assert len(log) == 5
    assert [e.version.turn for e in log.after(v(9, 9))] == [4, 5], "what was before is not needed to go on"
    assert Log().add(log.entries[3]) is Taken.HEAD, "it can be read without what it follows"


def test_what_is_forgotten_leaves_nothing_and_does_not_come_back() -> None:
    log = Log(CHAIN)
    tombstone = Entry(v(0, 4), forgotten=True)
    assert log.add(tombstone) is Taken.HEAD
    assert (log.entries, log.is_forgotten, log.conversation()) == ((tombstone,), True, ())
    for old in CHAIN:
        assert log.add(old) is Taken.STALE
    assert log.add(entry(v(0, 5), v(0, 4))) is Taken.HEAD
    assert not log.is_forgotten
    assert texts(log) == ["0.5a"]
    assert log.add(Entry(v(0, 3), forgotten=True)) is Taken.STALE, "it went on after it was forgotten elsewhere"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000))
def test_nodes_that_exchange_their_turns_agree_and_none_is_lost(seed: int) -> None:
    """Three nodes make turns on what they hold and exchange in any order; then each has told each other."""
    rng = random.Random(seed)
    logs = {node: Log() for node in "abc"}
    made: set[Version] = set()

    def give(source: str, target: str) -> None:
        before = logs[target].head
        for each in logs[source].after(before):
            assert logs[target].add(each) is not Taken.ORPHAN
        if before != NOTHING and before in logs[target].branches():
            for each in logs[target].path(before):
                logs[source].add(each)

    for _ in range(12):
        node = rng.choice("abc")
        if rng.random() < 0.6:
            head = logs[node].head
            version = Version(head.epoch + (rng.random() < 0.2), head.turn + 1, node)
            assert logs[node].add(entry(version, head)) is Taken.HEAD
            made.add(version)
        else:
            give(node, rng.choice("abc"))
    for _ in range(2):
        for source, target in itertools.permutations("abc", 2):
            give(source, target)
    if not made:
        return
    heads = {log.head for log in logs.values()}
    assert heads == {max(made)}
    assert len({tuple(texts(log)) for log in logs.values()}) == 1
    held = {e.version for log in logs.values() for e in log.entries}
    assert held == made
