"""Clients of others against real nodes, unchanged, each in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import installed
import pytest
from swarm import Node, Swarm, until

CLIENTS = Path(__file__).parent / "clients"
OPENAI = ("openai==3.57.0",)
LANGCHAIN = ("langchain-openai==1.7.4",)
LITELLM = ("litellm==1.110.2",)
OLLAMA = ("ollama==0.6.3",)
ANTHROPIC = ("anthropic==2.14.0",)
MODELS = [
    *("conclave", "conclave:fast", "conclave:majority", "conclave:confidence", "conclave:similarity"),
    *("conclave:quality", "conclave-demo"),
]
pytestmark = pytest.mark.timeout(installed.INSTALL_S + 320)
Nodes = tuple[Swarm, list[Node]]


def run(command: list[str], llamas: Nodes, fakes: Nodes, **env: str) -> Any:
    """What a client's script printed. Afterwards nothing runs on the nodes."""
    urls = [f"http://{nodes[0].http_address}/v1" for _, nodes in (llamas, fakes)]
    kept = {
        k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith(("OPENAI", "ANTHROPIC"))
    }
    done = subprocess.run([*command, *urls], env=kept | env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for _, nodes in (llamas, fakes):
        for node in nodes:
            until(lambda node=node: node.used() == 0, "all sequences are free")  # type: ignore[misc]
    return json.loads(done.stdout.splitlines()[-1])


def test_openais_python_client(llamas: Nodes, fakes: Nodes) -> None:
    python = installed.python("openai", *OPENAI)
    found = run([str(python), str(CLIENTS / "openai_sdk.py")], llamas, fakes)
    assert found["models"] == MODELS
    assert found["model"] == "conclave:majority-9"
    text, planned, tokens = found["vote"]
    assert (bool(text), planned, tokens > 20) == (True, 5, True)
    text, pieces, tokens, reason = found["stream"]
    assert (bool(text), reason) == (True, "stop")
    assert 2 < pieces <= tokens
    assert found["several"] == [["echo: hello", "length"]] * 3
    assert (found["parsed"], found["forced"]) == (True, ["weather", ["city"], "tool_calls"])
    assert found["called"] == ['weather{"city": "Bonn"}'] * 2
    assert found["after"] == "tool_calls"  # the fake echoes the last user message, which is the call
    assert found["errors"] == [
        [404, "not_found_error", "model_not_found", True],
        [400, "invalid_request_error", None, True],
        [400, "invalid_request_error", "context_length_exceeded", True],
    ]
    assert found["vectors"] == [1.0, 1.0]
    assert found["completion"]
    assert found["left"]
    responses = found["responses"]
    assert responses["texts"] == ["echo: hello", "echo: again", True]
    assert responses["kept"] == [True, True, "hello", "echo: hello", "again", "gone"]
    assert responses["kinds"] == ["response.created", "response.completed", True]
    assert responses["final"]
    assert responses["calls"] == [["weather", '{"city": "Bonn"}']]
    assert responses["parsed"]


def test_openais_javascript_client(llamas: Nodes, fakes: Nodes) -> None:
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("Node.js and npm are not installed")
    modules = installed.npm("openai-js", CLIENTS / "package.json")
    found = run(["node", str(CLIENTS / "openai_sdk.mjs")], llamas, fakes, CLIENT_MODULES=str(modules))
    assert found["vote"][1] == 5
    text, pieces = found["stream"]
    assert (bool(text), 2 < pieces <= found["usage"]) == (True, True)
    assert found["tool"] == ["sun in Bonn"]
    assert found["kinds"] == ["response.created", "response.completed"]
    assert (found["response"], found["vector"]) == ("echo: hello", 1)
    assert found["error"] == ["NotFoundError", 404, "model_not_found"]
    assert found["left"]


def test_ollamas_python_client(llamas: Nodes, fakes: Nodes) -> None:
    python = installed.python("ollama", *OLLAMA)
    found = run([str(python), str(CLIENTS / "ollama_client.py")], llamas, fakes)
    assert found["models"] == [m if ":" in m else f"{m}:latest" for m in MODELS]
    assert found["shown"] == ["qwen3", "F16", ["completion", "tools"], 2048]
    assert found["running"] == ["conclave-demo:latest"]
    assert found["loaded"] == ["load", "unload"]
    assert found["vote"] == [True, "stop", True, True]
    assert found["stream"] == [True, True, [False, True], 2]
    assert found["cut"] == "length"
    assert (found["generated"], found["raw"] > 0) == ("echo: hello", True)
    assert found["structured"] == ["a"]
    assert found["called"] == [["weather", {"city": "Bonn"}]]
    assert found["after"] == "echo: thanks"
    assert found["vectors"] == [3, True, True]
    assert [status for status, _ in found["errors"]] == [404, 501, 400, 400]
    assert all("\n" not in line for _, line in found["errors"])
    assert found["left"]


def test_anthropics_python_client(llamas: Nodes, fakes: Nodes) -> None:
    python = installed.python("anthropic", *ANTHROPIC)
    found = run([str(python), str(CLIENTS / "anthropic_sdk.py")], llamas, fakes)
    assert found["models"] == MODELS
    assert (found["vote"], found["outcome"]) == ([True, "end_turn", True], 5)
    assert found["stream"] == [True, True, "end_turn"]
    assert (found["cut"], found["structured"]) == ("max_tokens", ["a"])
    assert found["stopped"] == ["stop_sequence", "is"]
    assert found["async"] == [True, "stop_sequence", "12"]
    assert found["called"] == ["tool_use", "weather", {"city": "Bonn"}, "tool_use"]
    assert found["streamed"] == [["weather", {"city": "Bonn"}]]
    assert found["after"] == "echo: thanks"
    assert found["forced"] == [["weather", ["city"]]]
    assert found["counted"]
    assert found["errors"] == [
        [404, "NotFoundError", "error", "not_found_error"],
        [400, "BadRequestError", "error", "invalid_request_error"],
        [400, "BadRequestError", "error", "invalid_request_error"],
    ]
    assert found["left"]


@pytest.mark.slow
def test_langchain(llamas: Nodes, fakes: Nodes) -> None:
    python = installed.python("langchain", *LANGCHAIN)
    found = run([str(python), str(CLIENTS / "langchain_client.py")], llamas, fakes)
    assert found["vote"]
    assert found["tokens"]
    assert (bool(found["streamed"][0]), found["streamed"][1]) == (True, True)
    assert found["called"] == [["weather", {"city": "Bonn"}]]
    assert found["ran"] == "sun in Bonn"
    assert found["structured"]
    assert found["batch"] == ["echo: one", "echo: two", "echo: three"]
    assert found["vector"] == 1.0


@pytest.mark.slow
def test_litellm(llamas: Nodes, fakes: Nodes) -> None:
    python = installed.python("litellm", *LITELLM)
    found = run([str(python), str(CLIENTS / "litellm_client.py")], llamas, fakes)
    assert found["vote"]
    assert found["streamed"]
    assert (found["called"], found["vector"]) == ("weather", 1.0)
    assert found["error"] == ["NotFoundError", True]
