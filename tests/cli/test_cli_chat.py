"""`chat` with lines from a pipe: turns, commands, and going on at another node."""

import datetime

import grpc
import pytest
from fakenode import HERE, FakeNode, Run, nobody

from node.cli.chat import past
from node.v1 import kvsync_pb2, types_pb2


@pytest.fixture
def other() -> "FakeNode":
    made = FakeNode(name="other")
    yield made  # type: ignore[misc]
    made.stop()


def roles(node: FakeNode) -> list[tuple[bool, str]]:
    return [(r.append, "".join(m.role[0] for m in r.messages)) for r in node.requests]


def test_a_conversation(run: Run, node: FakeNode) -> None:
    done = run("chat", "--address", node.address, stdin="Hello\n\nAnd then?\r\nGrüße".encode())
    assert (done.code, done.out, done.err) == (0, "The answer is 42.\n" * 3, "")
    assert roles(node) == [(False, "u"), (True, "u"), (True, "u")]
    assert len({r.topic for r in node.requests}) == 1
    assert len({r.request_id for r in node.requests}) == 3
    assert [r.messages[-1].content for r in node.requests] == ["Hello", "And then?", "Grüße"]


def test_a_topic_that_exists_is_continued(run: Run, node: FakeNode) -> None:
    node.topics["garden"] = 4
    run("chat", "--address", node.address, "--topic", "garden", "--system", "Short.", stdin=b"one\ntwo\n")
    assert roles(node) == [(True, "u"), (True, "u")]


def test_a_topic_that_is_new_is_begun(run: Run, node: FakeNode) -> None:
    run("chat", "--address", node.address, "--topic", "garden", "--system", "Short.", stdin=b"one\ntwo\n")
    assert roles(node) == [(True, "u"), (True, "su"), (True, "u")]
    assert [r.begin for r in node.requests] == [False, True, False]


def test_a_node_that_forgot_gets_the_whole_conversation(run: Run, node: FakeNode) -> None:
    node.topics = Forgetful()
    done = run("chat", "--address", node.address, stdin=b"one\ntwo\n")
    assert (done.code, done.err) == (0, "")
    assert roles(node) == [(False, "u"), (True, "u"), (False, "uau")]


class Forgetful(dict[str, int]):
    """Knows no topic when asked."""

    def __contains__(self, _: object) -> bool:
        return False


def test_commands(run: Run, node: FakeNode) -> None:
    lines = "/votes-none\nHi\n/votes\n/topic\n/topic other\n/topic\n/help\n /topic is a command\n/quit\nnever sent\n"
    done = run("chat", "--address", node.address, "--topic", "first", stdin=lines.encode())
    assert (done.code, done.out) == (2, "")
    assert "/votes-none is not a command: there are /topic," in done.err
    done = run("chat", "--address", node.address, "--topic", "first", stdin=lines.split("\n", 1)[1].encode())
    assert done.code == 0
    assert "answer  votes  share  candidates\n42" in done.out
    assert done.out.count("topic first\n") == 1
    assert done.out.count("topic other\n") == 2
    assert "/retry         answer the last message again" in done.out
    assert [r.messages[-1].content for r in node.requests] == ["Hi", "Hi", "/topic is a command", "/topic is a command"]
    assert {r.topic for r in node.requests} == {"first", "other"}


def test_retry_asks_the_last_message_again_with_what_came_before(run: Run, node: FakeNode) -> None:
    done = run("chat", "--address", node.address, stdin=b"one\ntwo\n/retry\nthree\n")
    assert done.code == 0
    assert roles(node) == [(False, "u"), (True, "u"), (False, "uau"), (True, "u")]
    assert node.requests[2].messages[-1].content == "two"


def test_retry_needs_a_past_that_it_knows(run: Run, node: FakeNode) -> None:
    assert "nothing was said yet" in run("chat", "--address", node.address, stdin=b"/retry\n").err
    node.topics["garden"] = 4
    done = run("chat", "--address", node.address, "--topic", "garden", stdin=b"one\n/retry\n")
    assert done.code == 2
    assert "this topic began before this chat" in done.err


def test_a_node_that_is_gone_is_left_for_the_next(run: Run, node: FakeNode, other: FakeNode) -> None:
    done = run("chat", "--address", f"{node.address},{other.address}", stdin=b"one\n")
    assert roles(node) == [(False, "u")]
    node.die_at(1)
    done = run("chat", "--address", f"{node.address},{other.address}", stdin=b"one\n")
    assert (done.code, done.out, done.err) == (0, "The answer is 42.\n", "")  # nothing had come of it yet
    assert node.requests[1].request_id == other.requests[0].request_id


def test_a_node_that_does_not_know_the_topic_is_sent_the_whole_conversation(
    run: Run, node: FakeNode, other: FakeNode
) -> None:
    node.die_at(2)
    done = run("chat", "--address", f"{node.address},{other.address}", "--system", "S", stdin=b"one\ntwo\nthree\n")
    assert done.code == 0
    assert roles(node) == [(False, "su"), (True, "u")]
    assert roles(other) == [(True, "u"), (False, "suau"), (True, "u")]
    assert other.requests[0].request_id == node.requests[1].request_id
    assert [(r.parent.turn, r.parent.node_id) for r in other.requests] == [(1, HERE), (0, ""), (1, HERE)]


def test_an_unknown_past_is_continued_where_it_is_known(run: Run, node: FakeNode, other: FakeNode) -> None:
    node.topics["garden"] = other.topics["garden"] = 4
    node.die_at(2)
    argv = ["--address", f"{node.address},{other.address}", "--topic", "garden"]
    assert run("chat", *argv, stdin=b"one\ntwo\n").code == 0
    assert roles(other) == [(True, "u")]


def test_nobody_left(run: Run) -> None:
    done = run("chat", "--address", f"{nobody()},{nobody()}", stdin=b"one\ntwo\n")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("error: no node answers at")


def test_a_failed_turn_ends_a_script(run: Run, node: FakeNode) -> None:
    node.fail = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full: try again in 2 s")]
    done = run("chat", "--address", node.address, stdin=b"one\ntwo\n")
    assert (done.code, done.out, done.err) == (1, "", "error: the queue is full: try again in 2 s\n")
    assert len(node.requests) == 1


def test_lines_that_are_not_utf8(run: Run, node: FakeNode) -> None:
    done = run("chat", "--address", node.address, stdin=b"caf\xe9\n")
    assert (done.code, done.err) == (2, "error: standard input is not valid UTF-8 (byte 3 of a line)\n")


def test_other_programs_words_leave(run: Run, node: FakeNode) -> None:
    for word in ("/bye", "/exit"):
        assert run("chat", "--address", node.address, stdin=f"{word}\nnever sent\n".encode()).code == 0
    assert node.requests == []


def test_a_block_is_one_message(run: Run, node: FakeNode) -> None:
    done = run("chat", "--address", node.address, stdin=b'"""one\n\n/two\n"""\n"""/three"""\nfour\n"""\nopen')
    assert (done.code, done.err) == (0, "")
    assert [r.messages[-1].content for r in node.requests] == ["one\n\n/two", "/three", "four", "open"]


def test_nothing_to_say_is_an_error(run: Run, node: FakeNode) -> None:
    done = run("chat", "--address", node.address)
    assert (done.code, done.out) == (2, "")
    assert "nothing on standard input" in done.err


def test_another_node_that_answers_is_named(run: Run, node: FakeNode, other: FakeNode) -> None:
    done = run("chat", "--address", node.address, stdin=b"one\ntwo\n")
    assert done.err == ""
    node.deciders = ["aaa", "bbb", "bbb"]
    done = run("chat", "--address", node.address, stdin=b"one\ntwo\nthree\n")
    assert done.err == "note: node bbb answers now: another did before\n"


def test_a_topic_that_goes_on_says_so() -> None:
    made = datetime.datetime(2026, 11, 26, 4, 17).timestamp()
    said = [("user", "one"), ("assistant", "1"), ("user", "two\x1b[2J"), ("assistant", "2 " * 100)]
    shown = kvsync_pb2.ShowResponse(
        info=types_pb2.TopicInfo(topic="garden", made_ms=int(made * 1000)),
        messages=[types_pb2.Message(role=role, content=content) for role, content in said],
    )
    first, asked, answered = past(shown, made + 60).splitlines()
    assert first == "It goes on: 2 turns, the last 04:17."
    assert asked == "  user: two[2J"
    assert answered.startswith("  assistant: 2 2 2")
    assert len(answered) < 90
    assert "2 turns, the last 2026-11-26 04:17." in past(shown, made + 86400)
    del shown.messages[2:]
    assert past(shown, made).splitlines()[0].startswith("It goes on: 1 turn, ")
    assert past(kvsync_pb2.ShowResponse(), made) == ""
