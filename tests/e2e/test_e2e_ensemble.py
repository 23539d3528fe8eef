"""A node on each backend in one mesh, as processes: they vote together, whoever is asked, and what is learnt stays."""

import json
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from swarm import Node, Swarm, shared, swarm, together, until

from node.v1 import generate_pb2, types_pb2

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
SUM = "What is 12 + 30?"
PARAMS = types_pb2.SamplingParams(max_tokens=24)
FLAGS = ("--early-stop", "off", "--slots", "8")
Mesh = tuple[Swarm, dict[str, Node]]


def llama(made: Swarm) -> Node:
    return made.start(*FLAGS, "--data-dir", str(made.home / "llama"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Nodes by backend. The server that the openai node uses is the fake node's own, which is in the same mesh."""
    with swarm(tmp_path_factory.mktemp("ensemble")) as made:
        nodes = {
            "llama": llama(made),
            "fake": made.start(*FLAGS, "--backend", "fake", "--model", "fake:answers=answer: 42,name=scripted"),
        }
        try:
            import tinymlx

            tiny = tinymlx.make(made.home / "tiny", tinymlx.QWEN)
            nodes["mlx"] = made.start(*FLAGS, "--backend", "mlx", "--model", str(tiny))
        except ImportError:  # where there is no MLX the others vote without it
            pass
        made.ready(nodes["fake"])
        nodes["openai"] = made.start(*FLAGS, "--backend", "openai", "--url", nodes["fake"].http_address)
        made.ready(*nodes.values())
        together(*nodes.values())
        yield made, nodes


def wrote(answer: generate_pb2.GenerateResponse) -> dict[str, set[str]]:
    """The models of the candidates by node."""
    out: dict[str, set[str]] = {}
    for c in answer.candidates:
        out.setdefault(c.node, set()).add(c.model)
    return out


def rested(asked: Node) -> None:
    """Wait until a node knows of all others that they are free: peers that are busy get no candidates."""
    until(lambda: all(n.free_sequences == n.sequences for n in asked.client.status().nodes), "all are free")


def all_voted(asked: Node, count: int) -> generate_pb2.GenerateResponse:
    """A vote that all nodes took part in."""

    def ask() -> generate_pb2.GenerateResponse:
        rested(asked)
        return asked.client.ask(SUM, candidates=16, params=PARAMS, strategy="majority")

    return shared(ask, lambda answer: set(wrote(answer)), count)


def test_all_backends_vote_whoever_is_asked(mesh: Mesh) -> None:
    _, nodes = mesh
    models = {n.id: n.client.status().nodes[0].model for n in nodes.values()}
    for asked in nodes.values():
        answer = all_voted(asked, len(nodes))
        outcome = answer.outcome
        assert wrote(answer) == {id: {model} for id, model in models.items()}
        assert (outcome.finished, list(outcome.lost), outcome.quorum) == (16, [], True)
        assert len(outcome.models) == len(nodes)
        own = [c for c in answer.candidates if c.node == asked.id]
        assert len(own) >= 8, "the model that is asked has half"
        weights = {i: m.weight for m in outcome.models for i in m.candidates}
        assert max(weights.values()) == 1.0
        for cluster in outcome.clusters:
            assert cluster.weight == pytest.approx(sum(weights[i] for i in cluster.members))


def test_free_text_is_embedded_by_whoever_is_asked(mesh: Mesh) -> None:
    _, nodes = mesh
    for backend in ("llama", "mlx"):
        if backend in nodes:
            answer = nodes[backend].client.ask("Tell me.", candidates=8, params=PARAMS, strategy="similarity")
            assert answer.outcome.finished == 8
            assert not [w for w in answer.outcome.warnings if "no embeddings" in w]


def test_a_topic_goes_on_at_a_node_of_another_model(mesh: Mesh) -> None:
    _, nodes = mesh
    first = nodes["llama"].client.ask("My cat is called Tom.", topic="cat", candidates=4, params=PARAMS)
    version = first.version
    for backend in ("fake", "openai", "llama"):
        more = nodes[backend].client.ask(
            SUM, topic="cat", append=True, parent=version, candidates=8, params=PARAMS, strategy="majority"
        )
        assert more.version.turn == version.turn + 1
        assert more.outcome.finished == 8
        version = more.version


def test_a_model_that_is_named_answers_wherever_it_is(mesh: Mesh) -> None:
    made, nodes = mesh
    answer = nodes["llama"].client.ask(SUM, model="scripted", candidates=4)
    assert answer.text == "answer: 42"
    assert {c.model for c in answer.candidates} == {"scripted"}
    assert nodes["llama"].id not in wrote(answer)
    with pytest.raises(grpc.RpcError) as failed:
        nodes["llama"].client.ask(SUM, model="gpt")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    assert "'scripted'" in failed.value.details()  # type: ignore[attr-defined]
    own = nodes["llama"].client.ask(SUM, model="conclave-demo", candidates=4)
    assert set(wrote(own)) == {nodes["llama"].id}
    rested(nodes["llama"])
    shown = made.run("ask", SUM, "--votes", "--candidates", "12", "--address", nodes["llama"].address)
    assert "(scripted): " in shown.out
    assert "(conclave-demo): " in shown.out


def test_records_are_kept_through_a_kill_and_a_file_that_is_broken(mesh: Mesh) -> None:
    made, nodes = mesh
    asked = nodes["llama"]
    for _ in range(3):
        all_voted(asked, len(nodes))

    def records() -> dict[str, float]:
        return {m.fingerprint: m.votes for m in nodes["llama"].client.status().models}

    held = records()
    assert len(held) == len(nodes)
    assert min(held.values()) >= 3
    file = made.home / "llama" / "standings.json"
    until(lambda: file.exists() and len(json.loads(file.read_text())["models"]) == len(held), "the record is written")
    until(lambda: sum(m["votes"] for m in json.loads(file.read_text())["models"]) == sum(held.values()), "all of it")
    asked.signal(signal.SIGKILL)
    asked.process.wait()
    nodes["llama"] = llama(made)  # for the other tests too
    made.ready(nodes["llama"])
    assert records() == held
    assert made.end(nodes["llama"]) == [0]
    file.write_text('{"conclave_models": 1, "models": [{"votes": "many"}]}')
    nodes["llama"] = llama(made)
    made.ready(nodes["llama"])
    assert records() == {}
    assert nodes["llama"].client.ask(SUM, candidates=8).outcome.finished >= 4
    together(*nodes.values())


def test_a_model_of_another_node_answers_over_http(mesh: Mesh) -> None:
    """What most people do first: a laptop asks the model of the machine with the GPU, by its name."""
    _, nodes = mesh
    here = nodes["llama"].http_address
    listed = json.load(urllib.request.urlopen(f"http://{here}/v1/models", timeout=60))["data"]
    (listed_at,) = (m["conclave"]["node"] for m in listed if m["id"] == "scripted")
    assert listed_at in {nodes["fake"].id, nodes["openai"].id}, "which has it from the other"
    body = {"model": "scripted", "messages": [{"role": "user", "content": SUM}], "stream": True}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"http://{here}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    texts = [c["delta"].get("content") or "" for line in lines for c in json.loads(line)["choices"]]
    assert "".join(texts) == "answer: 42"
    assert len([t for t in texts if t]) > 1, "as it is written, over two nodes"
