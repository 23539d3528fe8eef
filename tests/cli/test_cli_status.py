"""`status`: what a person reads, and what a script reads."""

import datetime
import io
import json
import time

import pytest
from fakenode import THERE, FakeNode, Run, nobody
from rich.console import Console

from node.cli import render
from node.types import NodeInfo
from node.v1 import mesh_pb2, types_pb2


def test_plain_lines(run: Run, node: FakeNode) -> None:
    node.topics["garden"] = 3
    node.away, node.made_ms = [THERE], int(datetime.datetime(2026, 11, 25, 12).timestamp() * 1e3)
    done = run("status", "--address", node.address)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "node   state  model  backend  load   free  tokens/s  round trip  address         id",
        "hal *  alive  tiny   fake      25%  12/16        50           -  127.0.0.1:7421  aaaaaaaaaa",
        "bob    alive  tiny   fake      25%  12/16        50      1.5 ms  127.0.0.1:7421  bbbbbbbbbb",
        "",
        "topic   version  tokens  last turn         held by",
        "garden        3     100  2026-11-25 12:00  hal, bob (away)",
        "",
        "slots    4 used, 12 free; 3 idle prompts kept outside them",
        "speed    500 tokens/s of a prompt; an idle topic of 3 tokens or more is brought back, not computed again "
        "from memory, not from disk",
        "mesh     feedfeed",
        "version  0.1.0",
    ]


def test_the_record_of_models(run: Run, node: FakeNode) -> None:
    node.records = [
        mesh_pb2.ModelRecord(model="big", fingerprint="0123456789ab", votes=20.4, agreement=0.81, weight=1),
        mesh_pb2.ModelRecord(model="tiny", fingerprint="ba9876543210", votes=20.4, agreement=0.4, weight=0.275),
    ]
    lines = run("status", "--address", node.address).out.splitlines()
    assert lines[4:8] == [
        "model  fingerprint  votes  agreed  weight",
        "big    01234567        20     81%    1.00",
        "tiny   ba987654        20     40%    0.28",
        "",
    ]


def test_many_topics_do_not_hide_the_nodes(run: Run, node: FakeNode) -> None:
    node.topics = {f"t{i}": 1 for i in range(1000)}
    lines = run("status", "--address", node.address).out.splitlines()
    assert len(lines) < 60
    assert "and 960 more: --json lists all" in lines


def test_nodes_of_one_name_are_told_apart(run: Run, node: FakeNode) -> None:
    node.name = "bob"
    out = run("status", "--address", node.address).out
    assert "bob/aaaa *" in out
    assert "bob/bbbb " in out


def test_ids_are_as_long_as_it_takes() -> None:
    nodes = [NodeInfo(id, "x:1", name="vm") for id in ("abcdefgh", "abcdzzzz", "qqqqqqqq")]
    assert list(render.labels(nodes).values()) == ["vm/abcde", "vm/abcdz", "vm/qqqqq"]
    assert render.labels([*nodes, NodeInfo("", "x:1")])[""] == ""


def test_messages_call_nodes_as_tables_do() -> None:
    names = {"abcdefghij": "vm/abcd", "qqqqqqqqqq": "tower"}
    said = "node abcdefghij did not answer qqqqqqqqqq, zzzzzzzzzz did; abcdefghijk is none"
    assert render.called(said, names) == "node vm/abcd did not answer tower, zzzzzzzzzz did; abcdefghijk is none"


@pytest.mark.parametrize("columns", [200, 80, 60, 42])
def test_a_narrow_terminal_costs_columns_and_breaks_no_word(columns: int) -> None:
    said = mesh_pb2.StatusResponse(
        nodes=[
            types_pb2.NodeInfo(id=id, name="vm", state="alive", model="conclave-demo", backend="llama", sequences=16)
            for id in ("zxnneuf6sz", "nvixw32geb")
        ],
        topics=[types_pb2.TopicInfo(topic="garden", tokens=43, replicas=["zxnneuf6sz"], made_ms=1)],
    )
    for n in said.nodes:
        n.address, n.decode_tokens_per_s = "127.0.0.1:7421", 1234
    drawn = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None, markup=False)
    with drawn.capture() as capture:
        render.status(drawn, said)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= columns
    heads, one, other = lines[0].split(), lines[1].split(), lines[2].split()
    assert (one[:4], other[:3]) == (["vm/zxnn", "*", "alive", "conclave-demo"], ["vm/nvix", "alive", "conclave-demo"])
    assert ("address" in heads, "127.0.0.1:7421" in one) == ((True, True) if columns == 200 else (False, False))
    assert "tokens/s" in heads
    assert "garden" in capture.get()


def test_nothing_is_said_of_what_a_dead_node_could_do(run: Run, node: FakeNode) -> None:
    node.other_state = "dead"
    lines = run("status", "--address", node.address).out.splitlines()
    assert lines[2] == "bob    dead   tiny   fake        -      -         -           -  127.0.0.1:7421  bbbbbbbbbb"


def test_json_is_the_message(run: Run, node: FakeNode) -> None:
    done = run("status", "--json", "--address", node.address)
    answer = json.loads(done.out)
    assert set(answer) == {f.name for f in mesh_pb2.StatusResponse.DESCRIPTOR.fields}
    assert answer["nodes"][0]["decode_tokens_per_s"] == 50
    assert answer["nodes"][0]["round_trip_ms"] == 1.5
    assert answer["topics"] == []


def test_nobody_there(run: Run) -> None:
    address = nobody()
    done = run("status", "--json", "--address", address)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: no node answers at {address}: start one with `python -m node --join auto`\n"


def test_watch_repeats_until_it_is_interrupted(run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = iter((None, None))

    def sleep(_: float) -> None:
        if next(naps, 1) is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    done = run("status", "--watch", "--json", "--address", node.address)
    assert done.code == 0
    assert [json.loads(line)["mesh_id"] for line in done.out.splitlines()] == ["feedfeed"] * 3


@pytest.mark.parametrize(
    ("memory", "disk", "said"),
    [
        (1, 1, "an idle topic is brought back, not computed again"),
        (1, 9, "an idle topic is brought back, not computed again (from disk: of 9 or more)"),
        (3, 3, "an idle topic of 3 tokens or more is brought back, not computed again"),
        (3, 0, "an idle topic of 3 tokens or more is brought back, not computed again from memory, not from disk"),
    ],
)
def test_from_which_length_on_a_topic_is_brought_back(memory: int, disk: int, said: str) -> None:
    speeds = mesh_pb2.Speeds(prefill_tokens_per_s=500, worth_tokens=memory, worth_tokens_disk=disk)
    assert render._speed(mesh_pb2.StatusResponse(speeds=speeds)) == f"500 tokens/s of a prompt; {said}"
