"""`serve` around a node made of promises: flags, banner, notices, signals, and a start that fails."""

import asyncio
import json
import logging
import os
import signal
import sys
import types as pytypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakenode import Run

from node.cli.serve import GONE_AFTER, Peers
from node.config import Config
from node.errors import BackendError, ConclaveError, InvalidRequest
from node.mesh.identity import new_token
from node.types import NodeInfo


@dataclass(frozen=True)
class Summary:
    """What `node.app.Summary` holds."""

    node_id: str = "aaaaaaaaaa"
    name: str = "hal"
    model: str = "conclave-demo"
    is_demo: bool = True
    backend: str = "llama"
    fingerprint: str = "f00d"
    sequences: int = 16
    ctx: int = 4096
    candidates: int = 4
    memory_mb: int = 120
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    topics: str = ""
    local_address: str = "127.0.0.1:7420"
    mesh_address: str = "10.0.0.5:7421"
    mesh_id: str = "feedfeed"
    peers: tuple[NodeInfo, ...] = ()
    join_line: str = "python -m node --join 10.0.0.5:7421 --token clv1-x"
    http_address: str = "127.0.0.1:7422"
    notices: tuple[str, ...] = ("mDNS is off: no network",)
    spread: tuple[str, ...] = ("layers 0 to 1 here (0.05 GiB)", "layers 2 to 3 on kitchen (0.08 GiB)")
    lends_bytes: int = 2 << 30


class StandIn:
    """A node that starts, speaks, and is stopped by a signal of its own."""

    made: "list[StandIn]"
    problem: Exception | None = None
    signals = (signal.SIGTERM,)
    start_s = 0.0
    stop_s = 0.0
    peers: tuple[NodeInfo, ...] = ()
    mesh_address = "10.0.0.5:7421"

    def __init__(self, config: Config, *, after_loss: bool = False) -> None:
        self.config = config
        self.on_notice: Callable[[str], None] = print
        self.failed: asyncio.Future[ConclaveError] = asyncio.get_running_loop().create_future()
        self.is_stopped = False
        self.made.append(self)

    async def start(self) -> None:
        asyncio.get_running_loop().call_later(0.05, self.speak)
        await asyncio.sleep(self.start_s)
        if self.problem is not None:
            raise self.problem

    def speak(self) -> None:
        self.on_notice("peer bob (bbbbbbbbbb) joined\x1b[2J")
        for each in self.signals:
            os.kill(os.getpid(), each)

    async def stop(self) -> None:
        await asyncio.sleep(self.stop_s)
        self.is_stopped = True

    def summary(self) -> Summary:
        return Summary(peers=self.peers, mesh_address=self.mesh_address)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    class Node(StandIn):
        pass

    Node.made = []
    module = pytypes.ModuleType("node.app")
    module.Node, module.Summary = Node, Summary  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "node.app", module)
    before = list(logging.getLogger().handlers)
    yield Node
    # A node's log goes to this test's stderr, which is closed for those that come after.
    for handler in [h for h in logging.getLogger().handlers if h not in before]:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_banner_notices_and_a_clean_stop(run: Run, app: type[StandIn], signal_: signal.Signals) -> None:
    app.signals = (signal_,)
    before = signal.signal(signal_, signal.SIG_DFL)  # the tests may run under nohup
    try:
        done = run("--join", "auto")
    finally:
        signal.signal(signal_, before)
    assert (done.code, done.err) == (0, "")
    assert app.made[0].is_stopped
    lines = done.out.splitlines()
    assert lines[0] == "Conclave 0.1.0, node hal (aaaaaaaaaa)"
    assert any("conclave-demo (a small demonstration model; for real answers: --model PATH.gguf)" in x for x in lines)
    assert any("16 sequences x 4096 tokens, 120 MB, llama, 4 candidates a prompt" in x for x in lines)
    # Piped, so it may end in a log file: the token is not in it.
    assert any("machine joins" in x and "`python -m node pair` here, then there" in x for x in lines)
    assert "  python -m node --join 10.0.0.5:7421 --token TOKEN   (`python -m node token show` prints it)" in lines
    assert not any("clv1-" in line for line in lines)
    assert "  mDNS is off: no network" in lines
    assert "  spread   layers 0 to 1 here (0.05 GiB); layers 2 to 3 on kitchen (0.08 GiB)" in lines
    assert "  lends    2.0 GiB to nodes of this mesh (--pool)" in lines
    assert "peer bob (bbbbbbbbbb) joined[2J" in lines
    assert len(lines) <= 17


def test_a_log_for_programs_is_all_that_is_said(run: Run, app: type[StandIn]) -> None:
    done = run("--log", "json")
    assert (done.code, done.out) == (0, "")
    lines = [json.loads(line) for line in done.err.splitlines()]
    [ready] = [x for x in lines if x["message"] == "ready"]
    assert (ready["model"], ready["http"], ready["mesh"]) == ("conclave-demo", "127.0.0.1:7422", "feedfeed")
    assert "mDNS is off: no network" in [x["message"] for x in lines]
    assert "clv1-" not in done.err


def test_a_variable_that_is_nearly_an_option_is_said(
    run: Run, app: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCLAVE_PROT", "1")
    monkeypatch.setenv("CONCLAVE_SOMETHING_ELSE", "1")
    monkeypatch.setenv("CONCLAVE_MAX_TOKENS", "1")  # of another command
    lines = run().out.splitlines()
    assert [x for x in lines if "CONCLAVE_" in x] == ["  CONCLAVE_PROT is no option: did you mean CONCLAVE_PORT?"]


def test_a_token_that_is_given_is_kept(run: Run, app: type[StandIn], own_home: Path) -> None:
    token = new_token()
    assert "  the token is kept: later runs need no --token" in run("--token", token).out.splitlines()
    assert (own_home / "config/token").read_text().strip() == token
    assert (own_home / "config/token").stat().st_mode & 0o777 == 0o600
    assert "is kept" not in run("--token", token).out


def test_a_token_of_the_environment_is_not(
    run: Run, app: type[StandIn], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCLAVE_TOKEN", new_token())
    assert run().code == 0
    assert not (own_home / "config/token").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:7421", "[::1]:7421"])
def test_without_a_network_no_line_is_shown_that_cannot_work(run: Run, app: type[StandIn], address: str) -> None:
    app.mesh_address = address
    lines = run().out.splitlines()
    assert "No other machine can join: this node is on loopback only (no network, or --interface says so)." in lines
    assert not any("--token" in line for line in lines)


def test_peers_are_named(run: Run, app: type[StandIn]) -> None:
    app.peers = (NodeInfo("b", "1.2.3.4:1", name="bob", model="qwen"), NodeInfo("c", "1.2.3.5:1", name="cy", model="m"))
    assert "peers    bob (qwen), cy (m)" in run().out


def test_peers_that_come_and_go_are_said_once() -> None:
    bob, cy = NodeInfo("b", "1.2.3.4:1", name="bob", model="qwen"), NodeInfo("c", "1.2.3.5:1", model="m")
    peers = Peers([bob])
    assert peers.seen([bob]) == []
    assert peers.seen([bob, cy]) == ["peer c joined (m)"]
    assert [peers.seen([cy]) for _ in range(GONE_AFTER - 1)] == [[]] * (GONE_AFTER - 1)
    assert peers.seen([bob, cy]) == []  # it was only suspected
    assert [peers.seen([cy]) for _ in range(GONE_AFTER + 2)].count(["peer bob (b) is gone"]) == 1
    assert peers.seen([bob, cy]) == ["peer bob (b) joined (qwen)"]


def test_flags_reach_the_node(run: Run, app: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCLAVE_SLOTS", "5")
    assert run("serve", "--mesh-port", "7500", "--candidates=8").code == 0
    config = app.made[0].config
    assert (config.mesh_port, config.candidates, config.slots) == (7500, 8, 5)


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (BackendError("m.gguf cannot be loaded: it is cut off"), 1, "error: m.gguf cannot be loaded: it is cut off\n"),
        (InvalidRequest("port 7420 is taken: choose another"), 2, "error: port 7420 is taken: choose another\n"),
        (ValueError("oops"), 1, "error: ValueError: oops; --verbose shows where\n"),
    ],
)
def test_a_start_that_fails_is_one_line(
    run: Run, app: type[StandIn], problem: ConclaveError, code: int, line: str
) -> None:
    app.problem = problem
    done = run("serve")
    assert (done.code, done.out, done.err) == (code, "", line)
    assert app.made[0].is_stopped


def test_a_signal_while_it_starts(run: Run, app: type[StandIn]) -> None:
    app.start_s = 30
    done = run("serve")
    assert done.code == 0
    assert "Conclave 0.1.0" not in done.out
    assert app.made[0].is_stopped


def test_a_second_interrupt_ends_it_at_once(run: Run, app: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    app.signals = (signal.SIGINT, signal.SIGTERM)
    run("serve")
    assert ended == [130]


def test_a_stop_that_hangs_is_ended(run: Run, app: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr("node.cli.serve.STOP_S", 0.1)
    app.stop_s = 30
    done = run("serve")
    assert ended == [1]
    assert done.out.splitlines()[-1] == "the node did not stop within 0.1 s and is ended"
