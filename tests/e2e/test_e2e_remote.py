"""A node whose model is on another server: our own gateway, and llama-server where it was built; one that goes away."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import installed
import pytest
from swarm import SOON_S, Swarm, request, until

from node.models.resolve import BUNDLED
from node.v1 import types_pb2
from tests import loopback

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conclave" / "rivals"
LLAMA_SERVER = CACHE / importlib.metadata.version("llama-cpp-python") / "build/bin/llama-server"


@pytest.fixture
def llama_server() -> Iterator[str]:
    """A real llama-server on the bundled model; its URL."""
    if not LLAMA_SERVER.exists():
        pytest.skip("llama-server is not built: scripts/bench/build_rivals.sh")
    port = loopback.spare()
    command = [
        str(LLAMA_SERVER),
        "-m",
        str(BUNDLED),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-np",
        "4",
        "-c",
        "8192",
    ]
    server = subprocess.Popen(
        [*command, "--jinja", "-t", "2", "--no-warmup"],
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_healthy(port), "llama-server starts")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


# What its extra `server` asks for, and the package itself; llama.cpp is the one that is installed here.
SERVER = (
    *("fastapi==0.165.0", "uvicorn==0.54.0", "pydantic-settings==2.16.3", "sse-starlette==3.7.0", "PyYAML==6.0.4"),
    *("starlette-context==0.3.6", "numpy==2.4.6", "diskcache==5.6.3", "jinja2==3.1.6", "typing-extensions==4.16.0"),
)


@pytest.fixture
def llama_cpp_server(tmp_path: Path) -> Iterator[str]:
    """llama_cpp's own server (`python -m llama_cpp.server`) on the bundled model; its URL."""
    python = installed.python("llama-cpp-server", *SERVER)
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "llama_cpp").symlink_to(Path(spec.origin).parent)
    port = loopback.spare()
    said = tmp_path / "server.log"
    with said.open("wb") as out:
        server = subprocess.Popen(
            [
                *(str(python), "-m", "llama_cpp.server", "--model", str(BUNDLED), "--host", "127.0.0.1"),
                *("--port", str(port), "--n_ctx", "2048", "--n_threads", "2", "--logits_all", "true"),
            ],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "GOMP_SPINCOUNT": "1000"},
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: server.poll() is not None or is_healthy(port, "/v1/models"), "llama_cpp.server starts")
        assert server.poll() is None, said.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.timeout(installed.INSTALL_S + 120)
def test_llama_cpps_own_server(own: Swarm, llama_cpp_server: str) -> None:
    """It computes one request at a time, and takes a second one for the end of the first: so one sequence."""
    node = own.start("--backend", "openai", "--url", llama_cpp_server, "--join", "none", "--slots", "1")
    own.ready(node)
    answer = node.client.ask("What is 12 + 30?", candidates=3)
    assert "42" in answer.text
    assert answer.outcome.finished >= 2
    [info] = node.client.status().nodes
    assert (info.backend, info.sequences) == ("openai", 1)
    turn = node.client.generate.Generate(request("My cat is called Tom.", topic="t"), timeout=SOON_S)
    again = node.client.generate.Generate(request("What is my cat called?", topic="t", append=True), timeout=SOON_S)
    assert (turn.version.turn, again.version.turn) == (1, 2)
    assert "Tom" in again.text
    stream = node.client.generate.Stream(_long(), timeout=SOON_S)
    next(stream)
    stream.cancel()
    until(lambda: node.used() == 0, "its sequence is free")
    assert node.client.ask("What is 1 + 2?", candidates=1).text


def is_healthy(port: int, path: str = "/health") -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_real_llama_server(own: Swarm, llama_server: str) -> None:
    node = own.start("--backend", "openai", "--url", llama_server, "--join", "none", "--slots", "4")
    own.ready(node)
    answer = node.client.ask("What is 12 + 30?", candidates=4)
    assert "42" in answer.text
    assert answer.outcome.finished >= 2
    assert answer.usage.prompt_tokens > 10
    assert all(c.mean_logprob < 0 for c in answer.candidates)
    [info] = node.client.status().nodes
    assert (info.backend, info.sequences) == ("openai", 4)
    params = types_pb2.SamplingParams(json_schema='{"type": "integer"}', max_tokens=20)
    assert node.client.ask("What is 12 + 30?", candidates=1, params=params).text.strip().lstrip("-").isdigit()
    grammar = types_pb2.SamplingParams(grammar='root ::= "yes" | "no"')
    assert node.client.ask("Is it?", candidates=1, params=grammar).text in ("yes", "no")
    # A topic's next turn sends the conversation again, and llama-server finds its prefix.
    turn = node.client.generate.Generate(request("My cat is called Tom.", topic="t"), timeout=SOON_S)
    assert turn.version.turn == 1
    again = node.client.generate.Generate(request("What is my cat called?", topic="t", append=True), timeout=SOON_S)
    assert again.version.turn == 2
    assert again.usage.cached_tokens > 10
    # A client that leaves frees the server's slots within a step.
    stream = node.client.generate.Stream(_long(), timeout=SOON_S)
    next(stream)
    stream.cancel()
    until(lambda: node.used() == 0, "the server's slots are free")


def _long() -> object:
    from node.v1 import generate_pb2

    params = types_pb2.SamplingParams(max_tokens=1500, ignore_eos=True)
    return generate_pb2.StreamRequest(request=request("Count.", candidates=4, params=params))


def test_our_own_gateway_and_its_end(own: Swarm) -> None:
    """A node behind a node: the votes of the outer one are over answers of the inner one's own model, and not over its
    votes, which could ask the outer one again."""
    inner = own.start("--backend", "fake", "--model", "fake:answers=answer: 42,name=inner", "--join", "none")
    own.ready(inner)
    outer = own.start("--backend", "openai", "--url", inner.http_address, "--join", "none")
    own.ready(outer)
    answer = outer.client.ask("What is 40 + 2?", candidates=3)
    assert answer.text == "answer: 42"
    assert answer.outcome.finished >= 2
    [info] = outer.client.status().nodes
    assert (info.model, info.backend) == ("inner", "openai")
    own.end(inner)
    with pytest.raises(grpc.RpcError) as failed:
        outer.client.ask("And now?")
    assert "does not answer" in failed.value.details()
    assert outer.process.poll() is None


def test_no_server_is_one_line(own: Swarm) -> None:
    done = own.run("--backend", "openai", "--url", "http://127.0.0.1:9", "--join", "none")
    assert done.code == 1
    assert done.err.strip().startswith("error: http://127.0.0.1:9/v1 does not answer")
    assert len(done.err.strip().splitlines()) == 1
    done = own.run("--backend", "openai", "--join", "none")
    assert done.code == 2
    assert "say with --url which server" in done.err
