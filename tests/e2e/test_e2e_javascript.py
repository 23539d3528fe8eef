"""A client in another language, made from the .proto files alone, against real nodes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from install.paths import CACHE, lock
from swarm import ROOT, Node, Swarm

JS = Path(__file__).parent / "js"
INSTALL_S = 240.0


@pytest.fixture(scope="module")
def modules() -> Path:
    """What package.json asks for, installed once for all checkouts."""
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        pytest.skip("Node.js and npm are not installed")
    package = (JS / "package.json").read_bytes()
    name = f"npm-client-{hashlib.sha256(package).hexdigest()[:12]}"
    folder = CACHE / name
    with lock(name, f"Another process is installing {name}: waiting for it."):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "package.json").write_bytes(package)
            flags = ["--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run(
                [npm, "install", *flags], cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
            assert done.returncode == 0, done.stderr
            (folder / "ready").touch()
    return folder / "node_modules"


@pytest.mark.timeout(INSTALL_S + 60)
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
