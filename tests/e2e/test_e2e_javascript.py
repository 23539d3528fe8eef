"""A client in another language, made from the .proto files alone, against real nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import installed
import pytest
from swarm import ROOT, Node, Swarm

JS = Path(__file__).parent / "js"


@pytest.fixture(scope="module")
def modules() -> Path:
    """What package.json asks for."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("Node.js and npm are not installed")
    return installed.npm("grpc-js", JS / "package.json")


@pytest.mark.timeout(installed.INSTALL_S + 60)
def test_a_vote_by_javascript(llamas: tuple[Swarm, list[Node]], modules: Path) -> None:
    _, (one, two) = llamas
    done = subprocess.run(
        ["node", str(JS / "client.js"), one.address, str(ROOT / "proto"), "What is 12 + 30?"],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert {n["id"] for n in said["status"]["nodes"]} == {one.id, two.id}
    answer = said["answer"]
    assert (answer["outcome"]["planned"], answer["outcome"]["finished"]) == (8, 8)
    assert answer["outcome"]["strategy"] == "quality"
    assert {c["node"] for c in answer["candidates"]} == {one.id, two.id}
    assert "42" in {c["answer"] for c in answer["candidates"]}  # the model is not always right
    kinds = [e["event"] for e in said["events"]]
    assert kinds[0] == "plan"
    assert kinds[-1] == "done"
    assert kinds.count("candidate") == 8
    assert "token" in kinds
    assert said["events"][-1]["done"]["outcome"]["planned"] == 8
    assert said["error"]["code"] == "INVALID_ARGUMENT"
    assert "empty prompt" in said["error"]["details"]
