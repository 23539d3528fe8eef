"""A node is killed; another one goes on with its conversations, as a user sees it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time

import grpc
from swarm import NODE, ROOT, SOON_S, Node, Swarm, request, slow, together, until

from node.v1 import generate_pb2, types_pb2

FILLER = "Please tell me about it. " * 10


def say(node: Node, text: str, topic: str = "boat", **fields: object) -> generate_pb2.GenerateResponse:
    """A greedy turn that this node answers alone."""
    greedy = types_pb2.SamplingParams(temperature=0.0, max_tokens=64)
    fields = {"candidates": 1, "scope": generate_pb2.SCOPE_LOCAL, "params": greedy, "append": True} | fields
    return node.client.ask(text, topic=topic, **fields)


def kill(node: Node) -> None:
    node.signal(signal.SIGKILL)
    node.process.wait()


def held(node: Node, topic: str = "boat") -> str:
    """The version of a topic on a node, as `status` tells it."""
    for t in node.client.status().topics:
        if t.topic == topic:
            return f"{t.version.epoch}.{t.version.turn}"
    return ""


def test_another_node_remembers_and_goes_on_from_the_kv(own: Swarm) -> None:
    one, two = own.up(2, "--join", "auto")
    say(one, f"my boat is called Argo {FILLER}", append=False)
    first = say(one, "hi")

    def snapshot() -> int:
        shown = own.run("topics", "show", "boat", "--json", "--address", two.address)
        assert (shown.code, shown.err) == (0, "")
        return int(json.loads(shown.out)["snapshot_tokens"])

    until(lambda: snapshot() >= first.usage.prompt_tokens, "the KV is on the other node")
    kill(one)
    recalled = say(two, "what is my boat called?")
    assert "Argo" in recalled.text
    assert recalled.usage.cached_tokens > 80, "from restored KV: this node computed nothing of it before"
    assert (recalled.version.turn, recalled.version.node_id) == (3, two.id)
    # The killed node comes back, learns what was said, and goes on from there.
    back = own.start("--join", "auto")
    own.ready(back)
    assert back.id == one.id
    until(lambda: held(back) == held(two), "versions agree")
    again = say(back, "what is my boat called?")
    assert "Argo" in again.text
    assert again.version.turn == 4
    # What is forgotten is gone from both, and `topics` says so.
    listed = own.run("topics", "list")
    assert listed.code == 0
    assert "boat" in listed.out
    gone = own.run("topics", "forget", "boat")
    assert (gone.code, gone.err) == (0, "")
    assert "1 other node" in gone.out
    assert own.run("topics", "--address", two.address).out == own.run("topics", "--address", back.address).out
    missing = own.run("topics", "show", "boat")
    assert missing.code == 1
    assert "was forgotten" in missing.err
    assert "Traceback" not in missing.err


def test_a_node_killed_in_the_middle_of_an_answer_costs_no_turn_and_makes_none_twice(own: Swarm) -> None:
    one, two = own.up(2, *slow(30, 20, "42"))
    say(one, "first", topic="t", append=False)
    until(lambda: held(two, "t") == "0.1", "the other node has it")
    begun = threading.Event()

    def ask() -> None:
        asked = generate_pb2.StreamRequest(
            request=request(
                "second", topic="t", append=True, candidates=1, scope=generate_pb2.SCOPE_LOCAL, request_id="r2"
            )
        )
        with contextlib.suppress(grpc.RpcError):
            for event in one.client.generate.Stream(asked, timeout=30):
                if event.WhichOneof("event") == "token":
                    begun.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(SOON_S)
    kill(one)
    asking.join(SOON_S)
    # What a client does: the same request again, at another node; and once more, as its first answer was lost too.
    answers = [say(two, "second", topic="t", request_id="r2", params=types_pb2.SamplingParams()) for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert answers[0].version == answers[1].version
    assert answers[0].version.turn == 2
    shown = json.loads(own.run("topics", "show", "t", "--json").out)
    assert [m["content"] for m in shown["messages"] if m["role"] == "user"] == ["first", "second"]
    # It is in the log: this node, started again, gives the same answer too.
    kill(two)
    back = own.start(*slow(30, 20, "41"))
    other = own.start(*slow(30, 20, "41"))
    own.ready(back, other)
    node = back if back.id == two.id else other
    assert say(node, "second", topic="t", request_id="r2", params=types_pb2.SamplingParams()).text == answers[0].text


class Terminal:
    """A command on a terminal of its own, as a person has it."""

    def __init__(self, made: Swarm, *argv: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*NODE, *argv], stdin=slave, stdout=slave, stderr=slave, env=made.env(TERM="dumb"), cwd=ROOT
        )
        os.close(slave)
        self.seen = ""

    def type(self, line: str) -> int:
        """A line and the return key; answers with where what is seen from now on begins."""
        begin = len(self.seen)
        os.write(self._master, line.encode() + b"\n")
        return begin

    def until(self, what: str, begin: int = 0) -> str:
        """Read until a pattern is seen."""
        end = time.monotonic() + SOON_S
        while not (found := re.search(what, self.seen[begin:], re.DOTALL)):
            assert time.monotonic() < end, f"{what!r} is not in {self.seen[begin:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
        return found.group()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_a_person_at_a_terminal_goes_on_after_the_death_of_the_node(own: Swarm) -> None:
    """Told a fact; the node that answers is killed in the middle of an answer; the answer comes, and the fact is
    remembered, by a node that was never spoken to."""
    one = own.start()
    own.ready(one)
    two = own.start()
    own.ready(two)
    together(one, two)
    terminal = Terminal(own, "chat", "--candidates", "1", "--local", "--temperature", "0")
    try:
        terminal.until(r"\n> ?$|> $")
        at = terminal.type("my boat is called Argo")
        terminal.until(r"Argo.*?\n.*?> ?$", at)
        one.signal(signal.SIGSTOP)  # so that it dies with the turn under way, however quick it is
        at = terminal.type("what is my boat called?")
        time.sleep(0.3)
        kill(one)
        terminal.until(r"called\?.*Argo.*?> ?$", at)
        at = terminal.type("hi")
        terminal.until(r"hi\r?\n.*\w.*?> ?$", at)
        at = terminal.type("what is my boat called?")
        terminal.until(r"called\?.*Argo.*?> ?$", at)
        (topic,) = two.client.status().topics
        assert (topic.version.turn, topic.version.node_id) == (4, two.id)
    finally:
        terminal.close()
