"""A model over two nodes, as a user has it: two processes, and what becomes of one when the other is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from swarm import SOON_S, Node, Swarm, swarm, together, until

from node.engine import llamacpp
from node.v1 import generate_pb2, types_pb2
from scripts.bench.make_model import Shape, write

needs_rpc = pytest.mark.skipif(not llamacpp.has_rpc(), reason="llama.cpp without RPC here: `make test-rpc` runs this")
SMALL = Shape("qwen2", layers=6, width=128, heads=4, kv_heads=2, hidden=256, vocabulary=300, context=1024)
LENDS = ("--backend", "fake", "--name", "kitchen", "--pool", "1")
SAME = ("--slots", "4", "--draft", "0")  # guesses change the shape of batches, and that the last digits
GREEDY = {"max_tokens": 48, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write(path, SMALL)
    return path


@pytest.fixture
def pooled(tmp_path: Path, model: Path) -> Iterator[tuple[Swarm, Node, Node]]:
    """A node that lends, and one whose model is spread over both."""
    with swarm(tmp_path / "home") as made:
        lender = made.start(*LENDS)
        made.ready(lender)
        borrower = made.start("--model", str(model), *SAME, "--borrow", "even", "--name", "desk")
        made.ready(borrower)
        together(lender, borrower)
        yield made, lender, borrower


def tokens(node: Node, prompt: str) -> str:
    """A greedy answer, with the probability of each of its tokens: equal texts alone could be chance."""
    answer = node.client.ask(
        prompt,
        candidates=1,
        scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(**GREEDY, logprobs=True),
    )
    [winner] = [c for c in answer.candidates if c.id == answer.outcome.winner] or list(answer.candidates)[:1]
    return f"{answer.text!r} {[(t.token, round(t.logprob, 5)) for t in winner.logprobs]}"


def servers(node: Node) -> list[psutil.Process]:
    """The RPC servers among a node's children."""
    found = []
    for child in psutil.Process(node.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since
            if "node.engine.llamacpp.lend" in child.cmdline():
                found.append(child)
    return found


@needs_rpc
def test_two_nodes_answer_as_one_does(pooled: tuple[Swarm, Node, Node], model: Path) -> None:
    made, lender, borrower = pooled
    alone = made.start("--model", str(model), *SAME, "--join", "none", "--name", "alone")
    made.ready(alone)
    for prompt in ("What is 17 + 25?", "x" * 300, "and one more"):
        expected = tokens(alone, prompt)
        assert len(expected) > 400
        assert tokens(borrower, prompt) == expected
    said = borrower.said()
    assert "layers 0 to 2 here" in said
    assert "layers 3 to 5 on kitchen" in said
    assert len(servers(lender)) == 1
    nodes = {n.name: n for n in borrower.client.status().nodes}
    assert nodes["kitchen"].lends_bytes == 1 << 30
    assert list(nodes["desk"].borrows_from) == [lender.id]
    until(lambda: {n.name: n for n in lender.client.status().nodes}["kitchen"].lent_to == borrower.id, "it is lent")
    shown = made.run("status", "--address", lender.address)
    assert "kitchen lends 1.0 GiB to desk" in shown.out


@needs_rpc
def test_over_two_lenders_with_more_topics_than_slots(pooled: tuple[Swarm, Node, Node], model: Path) -> None:
    """Topics that have no slot are parked, which reads their KV from all nodes and writes it back."""
    made, lender, _ = pooled
    made.end(pooled[2])
    made.ready(made.start(*LENDS[:2], "--name", "attic", "--pool", "1"))
    until(lambda: not lender.client.status().nodes[0].lent_to, "the memory is free")
    here = made.start("--model", str(model), *SAME, "--borrow", "even", "--name", "three", "--replicas", "0")
    alone = made.start("--model", str(model), *SAME, "--join", "none", "--name", "alone", "--replicas", "0")
    made.ready(here, alone)
    assert all(f"layers {layers} " in here.said() for layers in ("0 to 1 here", "2 to 3 on", "4 to 5 on"))
    params = types_pb2.SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    for turn in range(2):
        for topic in "abcdef":
            texts = {
                node.client.ask(
                    f"{topic} says {turn}", topic=topic, append=turn > 0, candidates=1, params=params,
                    scope=generate_pb2.SCOPE_LOCAL,
                ).text
                for node in (here, alone)
            }  # fmt: skip
            assert len(texts) == 1, texts
    until(lambda: here.client.status().slots.parked == 6, "all are parked, once nobody asks")


@needs_rpc
def test_nothing_listens_but_the_nodes(pooled: tuple[Swarm, Node, Node]) -> None:
    """And of these only the mesh listener beyond loopback, which asks for a certificate."""
    _, lender, borrower = pooled
    for node in (lender, borrower):
        expected = {int(a.rsplit(":", 1)[1]) for a in (node.address, node.mesh_address, node.http_address)}
        processes = [psutil.Process(node.process.pid), *psutil.Process(node.process.pid).children(recursive=True)]
        open_ports = set()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = process.net_connections("inet")
                open_ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
        assert open_ports == expected


def back(made: Swarm, borrower: Node) -> None:
    """Wait until the borrower, as the same process, serves again."""
    until(lambda: "this node starts again" in borrower.said(), "the loss is said")
    borrower.client.channel.close()
    until(lambda: borrower.said().count("Ask it something") >= 2, "it is ready again")
    made.ready(borrower)


@needs_rpc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lender_dies(pooled: tuple[Swarm, Node, Node], how: signal.Signals) -> None:
    """Whoever waits has his answer from another node; the borrower goes on with who is left, and with its topics."""
    made, lender, borrower = pooled
    made.end(*made.nodes[2:])
    attic = made.start("--backend", "fake", "--name", "attic", "--pool", "1")
    made.ready(attic)
    together(borrower, attic)
    params = types_pb2.SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    asked = {"candidates": 1, "scope": generate_pb2.SCOPE_LOCAL, "params": params}
    before = borrower.client.ask("remember this", topic="kept", **asked)
    address = f"{borrower.address},{attic.address}"
    asking = made.popen(
        "ask", "--address", address, "--local", "-n", "1", "--ignore-eos", "--max-tokens", "900", "tell me all"
    )
    until(borrower.used, "the answer is being written")
    lender.signal(how)
    answered, said = asking.communicate(timeout=SOON_S)
    assert asking.returncode == 0, said
    assert b"going on at another node" in said
    assert answered
    back(made, borrower)
    assert "error: kitchen, which held layers 3 to 5 of the model, is gone" in borrower.said()
    assert "GGML" not in borrower.said()
    assert "layers 3 to 5 on attic" in borrower.said()
    assert len(servers(attic)) == 1
    after = borrower.client.ask("and this", topic="kept", append=True, **asked)
    assert after.version.turn == before.version.turn + 1
    assert after.usage.prompt_tokens > before.usage.prompt_tokens, "the conversation, not the last message alone"


@needs_rpc
def test_the_last_lender_dies(pooled: tuple[Swarm, Node, Node]) -> None:
    """What fits here is then loaded here."""
    made, lender, borrower = pooled
    expected = tokens(borrower, "What is 17 + 25?")
    lender.signal(signal.SIGKILL)
    back(made, borrower)
    assert "is loaded here as a whole: nobody lends memory now" in borrower.said()
    assert tokens(borrower, "What is 17 + 25?") == expected


@needs_rpc
def test_the_server_process_dies(pooled: tuple[Swarm, Node, Node]) -> None:
    """The lender goes on, and lends again to the borrower that has started again."""
    made, lender, borrower = pooled
    [server] = until(lambda: servers(lender), "the server runs")
    server.kill()
    back(made, borrower)
    assert lender.process.poll() is None
    assert len(servers(lender)) == 1
    assert borrower.said().count("layers 3 to 5 on kitchen") >= 2


def ended(process: psutil.Process) -> bool:
    """Gone, or a zombie that nobody waits for, as in a container without an init."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@needs_rpc
def test_the_borrower_dies(pooled: tuple[Swarm, Node, Node], model: Path) -> None:
    """The lender's memory is free at once, for the next."""
    made, lender, borrower = pooled
    [server] = until(lambda: servers(lender), "the server runs")
    borrower.signal(signal.SIGKILL)
    until(lambda: ended(server), "the server ends")
    until(lambda: not lender.client.status().nodes[0].lent_to, "the memory is free")
    again = made.start("--model", str(model), "--slots", "4", "--borrow", "even")
    made.ready(again)
    until(lambda: len(servers(lender)) == 1, "one server")


@needs_rpc
def test_the_lender_freezes_while_the_model_is_loaded(own: Swarm, tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    write(large, Shape("qwen2", layers=16, width=512, heads=8, kv_heads=2, hidden=2048, vocabulary=300, context=1024))
    lender = own.start(*LENDS)
    own.ready(lender)
    borrower = own.start("--model", str(large), "--slots", "4", "--borrow", "even")
    until(lambda: "the model is spread" in borrower.said(), "the plan is made")
    lender.signal(signal.SIGSTOP)
    try:
        until(lambda: "is gone" in borrower.said(), "the loss is noticed")
    finally:
        lender.signal(signal.SIGCONT)
    until(lambda: borrower.said().count("the model is spread") >= 2, "it is planned anew")
    own.ready(borrower)


@needs_rpc
def test_too_little_is_lent(own: Swarm, model: Path) -> None:
    """Asked for by the user it is an error, with what to do."""
    borrower = own.start("--model", str(model), "--borrow", "even", "--join", "none")
    assert borrower.process.wait(60) == 1
    assert "0 nodes lend 0.0 GiB; start more nodes with --pool" in borrower.said()


@pytest.mark.skipif(llamacpp.has_rpc(), reason="llama.cpp with RPC here")
def test_without_rpc_both_go_on_with_a_line(own: Swarm) -> None:
    node = own.start("--pool", "--borrow", "even", "--join", "none")
    own.ready(node)
    until(lambda: "Ask it" in node.said(), "the banner")
    lines = [line for line in node.said().splitlines() if "make run RPC=1" in line]
    assert [line.split()[0] for line in lines] == ["--borrow", "--pool"]
    assert node.client.status().nodes[0].lends_bytes == 0


def test_more_than_there_is_cannot_be_lent(own: Swarm) -> None:
    done = own.run("serve", "--backend", "fake", "--pool", "many")
    assert done.code == 2
    assert "it must be a number of GiB, or auto" in done.err
    assert os.environ.get("CONCLAVE_POOL", "") == ""
