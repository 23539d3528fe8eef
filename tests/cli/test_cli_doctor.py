"""`doctor`: each check can say ok and can say what is wrong; nothing is changed by looking."""

import json
import socket
import time
from pathlib import Path

import pytest
from fakenode import FakeNode, Run

from node.cli import checks
from node.config import Config
from node.hardware import bandwidth, cpu
from node.hardware.gpu import Gpu
from node.hardware.machine import Machine, detect
from node.mesh.identity import new_token
from node.mesh.local import Presence, RunningNode
from node.mesh.multicast import hears_itself


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes seconds to load a model: its check has tests of its own."""
    monkeypatch.setattr(bandwidth, "PASSES", 1)
    monkeypatch.setattr(bandwidth, "ROUNDS", 1)
    monkeypatch.setattr(checks, "_try_backend", lambda *_: ({"version": "0.3.36", "gpu": False}, ""))


def test_lines_and_exit_code(run: Run, own_home: Path) -> None:
    done = run("doctor")
    assert done.err == ""
    assert done.code == 0, done.out
    lines = [line for line in done.out.splitlines() if not line.startswith("     -> ")]
    assert all(line[:5] in ("ok   ", "warn ", "fail ") for line in lines)
    assert any(line.startswith("ok   backend: llama_cpp 0.3.36") for line in lines)
    assert not own_home.exists()


def test_json(run: Run, own_home: Path) -> None:
    (own_home / "config").mkdir(parents=True)
    (own_home / "config/token").write_text("nonsense")
    done = run("doctor", "--json")
    assert done.code == 1
    answer = json.loads(done.out)
    assert answer["ok"] is False
    assert {"name", "level", "found", "advice"} == set(answer["checks"][0])
    assert [c["name"] for c in answer["checks"] if c["level"] == "fail"] == ["token"]


def test_configuration(tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text("slots = 'many'\n")
    check, config = checks.configuration({}, file)
    assert (check.level, config) == ("fail", Config())
    assert "slots" in check.found
    file.write_text("slots = 4\n")
    assert checks.configuration({}, file)[1].slots == 4


def test_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        taken = s.getsockname()[1]

        def look(asked: int | None, running: dict[int, str]) -> str:
            return checks.port("port", asked, taken, ("127.0.0.1",), running).level

        assert look(None, {}) == "warn"
        assert look(taken, {}) == "fail"
        assert look(None, {taken: "aaaaaaaaaa"}) == "ok"
    assert checks.port("port", None, taken, ("127.0.0.1",), {}).level == "ok"
    assert checks.port("port", None, taken, ("192.0.2.1",), {}).level == "fail"


def test_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert checks.token(file, "").level == "ok"
    file.write_text(new_token())
    file.chmod(0o644)
    assert checks.token(file, "").advice == f"chmod 600 {file}"
    file.chmod(0o600)
    assert checks.token(file, "").level == "ok"
    assert checks.token(file, "clv1-x").level == "fail"


def test_mdns() -> None:
    (check,) = checks.mdns(("127.0.0.1",))
    assert check.level in ("ok", "warn")  # a sandbox may have no multicast
    (check,) = checks.mdns(("192.0.2.1",))
    assert check.level == "fail"
    assert hears_itself("192.0.2.1")


def test_clock() -> None:
    now = time.time()
    assert checks.clock(now, now - 60).level == "ok"
    assert checks.clock(0, now).level == "fail"


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.data(tmp_path / "not/yet").level in ("ok", "warn")
    file = tmp_path / "file"
    file.touch()
    assert checks.data(file / "x").level == "fail"
    monkeypatch.setattr(checks, "LEAST_DISK", 1 << 60)
    assert checks.data(tmp_path).level == "fail"


def test_a_model_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    levels = [[c.level for c in checks.backend(Config(model=str(file)), Machine(None))][-1]]
    file.write_bytes(b"PK..")
    levels.append([c.level for c in checks.backend(Config(model=str(file)), Machine(None))][-1])
    file.write_bytes(b"GGUF....")
    levels.append([c.level for c in checks.backend(Config(model=str(file)), Machine(None))][-1])
    assert levels == ["fail", "fail", "ok"]


def test_hardware_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cpu.detect()
    assert found is not None
    assert 0 < found.usable_cores <= found.logical_cores
    assert 0 < found.available_bytes <= found.memory_bytes
    detect()

    def broken() -> None:
        raise OSError("no /proc")

    monkeypatch.setattr("psutil.virtual_memory", broken)
    assert cpu.detect() is None
    assert next(checks.hardware(detect())).level == "warn"


def test_what_doctor_says_of_gpus() -> None:
    card = Gpu("amd", 0, "RX 7900", 24 * checks.GIB, 20 * checks.GIB, "HIP", architecture="gfx1100")
    graphics = Gpu("intel", 0, "Iris", 8 * checks.GIB, 8 * checks.GIB, "SYCL", is_shared=True)
    found = list(checks.hardware(Machine(None, (card, graphics), ("NVIDIA: broken",))))
    assert [(c.name, c.level) for c in found[1:]] == [("GPU amd 0", "ok"), ("GPU intel 0", "ok"), ("GPU", "warn")]
    assert found[1].found == "RX 7900, 20.0 of 24.0 GiB free, gfx1100"
    assert "shared" in found[2].found
    (idle,) = checks.backend_on_gpu(Machine(None, (graphics, card)), False)
    assert "-DGGML_HIP=on" in idle.advice
    assert list(checks.backend_on_gpu(Machine(None, (card,)), True)) == []
    assert list(checks.backend_on_gpu(Machine(None, (graphics,)), False)) == []


def test_what_running_nodes_noticed(node: FakeNode, own_home: Path) -> None:
    assert list(checks.mesh(own_home / "run")) == []
    presence = Presence(own_home / "run")
    presence.publish(RunningNode("aaaaaaaaaa", 1, "feedfeed", "127.0.0.1:1", node.address, 0.0))
    node.notices = ["10.0.0.7:7421 is of another mesh: to join it, start this node with --token\x1b[2J"]
    node.problems = ["token logs cannot be written (No space left on device): answers are in memory only"]
    joined, durability, speed, near, far, told = checks.mesh(own_home / "run")
    quicker = "that is quicker than computing it again for topics of"
    assert speed.found == f"50 tokens/s written, 500 read, KV brought back at 2000 MB/s: {quicker} 3 tokens or more"
    assert (near.name, near.found) == ("link to bob", f"110 MB/s for KV: {quicker} 70 tokens or more")
    assert far.found == "0 MB/s for KV: computing it again is quicker"
    assert (joined.level, joined.found) == ("ok", "feedfeed, with 1 other node")
    assert (durability.level, durability.name, durability.found) == ("warn", "durability", node.problems[0])
    assert "free some space" in durability.advice
    assert (told.level, told.found) == ("warn", "10.0.0.7:7421 is of another mesh")
    assert told.advice == "to join it, start this node with --token[2J"
    node.stop()
    (gone,) = checks.mesh(own_home / "run")
    assert gone.level == "warn"
    presence.withdraw()
