"""Nodes as a user runs them: processes on loopback, waited for by what they say, always cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from node.mesh.local import running_nodes
from node.v1 import generate_pb2, generate_pb2_grpc, kvsync_pb2_grpc, mesh_pb2, mesh_pb2_grpc, types_pb2

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
NODE = [sys.executable, "-m", "node"]
SOON_S = 90.0  # for what takes a second on a quiet machine
STEP_S = 0.02


def until(condition: Callable[[], T], what: str, within: float = SOON_S) -> T:
    """Waits for a condition to be true; returns what it gave."""
    end = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {within:g} s: {what}"
        time.sleep(STEP_S)


def in_time(ask: Callable[[], T], tries: int = 8) -> T:
    """What a call with a short deadline gives. The answer is made a quarter of a second before it: a machine that
    stands still for as long in that moment misses it, but hardly every time."""
    for left in reversed(range(tries)):
        try:
            return ask()
        except grpc.RpcError as e:
            if e.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or not left:  # type: ignore[attr-defined]
                raise
    raise AssertionError


def shared(ask: Callable[[], T], nodes: Callable[[T], set[str]], count: int = 2) -> T:
    """A vote that so many nodes take part in: one that stood still for half a second is left out of the next."""
    for _ in range(5):
        response = ask()
        if len(nodes(response)) == count:
            break
        time.sleep(1)
    return response


def never(condition: Callable[[], object], what: str, within: float) -> None:
    """Looks for as long as something would take if it happened at all."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        assert not condition(), what
        time.sleep(STEP_S)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


class Client:
    """Stubs of one local listener."""

    def __init__(self, address: str) -> None:
        # Calls of one process to several nodes must not share connections: some of these nodes are killed.
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.generate = generate_pb2_grpc.GenerateStub(self.channel)
        self.mesh = mesh_pb2_grpc.MeshStub(self.channel)
        self.kvsync = kvsync_pb2_grpc.KVSyncStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def ask(self, prompt: str, timeout: float = SOON_S, **fields: object) -> generate_pb2.GenerateResponse:
        return self.generate.Generate(request(prompt, **fields), timeout=timeout)

    def status(self) -> mesh_pb2.StatusResponse:
        return self.mesh.Status(mesh_pb2.StatusRequest(), timeout=SOON_S)


def request(prompt: str, **fields: object) -> generate_pb2.GenerateRequest:
    """A request with one user message."""
    messages = [types_pb2.Message(role="user", content=prompt)]
    return generate_pb2.GenerateRequest(**{"messages": messages, **fields})  # type: ignore[arg-type]


@dataclass
class Node:
    """A running node."""

    process: subprocess.Popen[bytes]
    log: Path
    id: str = ""
    address: str = ""
    mesh_address: str = ""
    http_address: str = ""
    client: Client = field(init=False, repr=False)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def used(self) -> int:
        """Its sequences in use."""
        return self.client.status().slots.used

    def peers(self) -> set[str]:
        """Ids of the other nodes that it holds for alive."""
        return {n.id for n in self.client.status().nodes if n.state == "alive" and n.id != self.id}


class Swarm:
    """The nodes and commands of one user on one machine: they share a home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nodes: list[Node] = []
        home.mkdir(parents=True, exist_ok=True)

    def env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CONCLAVE_") and k not in _CHANGES_OUTPUT}
        # Not `auto`: a developer's machine may have bigger models in its caches.
        own = {"CONCLAVE_HOME": str(self.home), "CONCLAVE_INTERFACE": "127.0.0.1", "CONCLAVE_MODEL": "bundled"}
        return kept | own | more

    def run(self, *argv: str | bytes, stdin: bytes = b"", timeout: float = SOON_S, **env: str) -> Ran:
        """Run a command to its end."""
        done = subprocess.run(
            [*NODE, *argv],
            input=stdin,
            capture_output=True,
            env=self.env(**env),
            cwd=ROOT,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def popen(self, *argv: str, stdin: bool = False) -> subprocess.Popen[bytes]:
        """Start a command; for the test to end it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*NODE, *argv],
            stdin=pipe if stdin else subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=self.env(),
            cwd=ROOT,
        )

    def start(self, *argv: str, **env: str) -> Node:
        """Start a node; `ready` waits for it."""
        log = self.home / f"node-{len(self.nodes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*NODE, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env(**env), cwd=ROOT
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node

    def ready(self, *nodes: Node) -> None:
        """Wait until nodes serve."""
        for node in nodes:

            def here(node: Node = node) -> bool:
                assert node.process.poll() is None, f"a node ended with {node.process.returncode}: {node.said()}"
                found = [n for n in running_nodes(self.home / "run") if n.pid == node.process.pid]
                for n in found:
                    node.id, node.address, node.mesh_address = n.node_id, n.local_address, n.mesh_address
                    node.http_address = n.http_address
                return bool(found)

            until(here, "a node starts")
            node.client = Client(node.address)
            answer = node.client.health.Check(health_pb2.HealthCheckRequest(), timeout=SOON_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def up(self, count: int, *argv: str) -> list[Node]:
        """Start nodes together and wait until each sees all others."""
        nodes = [self.start(*argv) for _ in range(count)]
        self.ready(*nodes)
        together(*nodes)
        return nodes

    def end(self, *nodes: Node) -> list[int]:
        """Ask nodes to stop and wait for it; their exit codes."""
        for node in nodes:
            node.signal(signal.SIGTERM)
        return [node.process.wait(SOON_S) for node in nodes]

    def close(self) -> None:
        """End what still runs, whatever state it is in; none may hang, and none may have shown a traceback."""
        for node in self.nodes:
            if node.address:
                node.client.channel.close()
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.terminate()
        hung = []
        for node in self.nodes:
            try:
                node.process.wait(SOON_S)
            except subprocess.TimeoutExpired:
                hung.append(node.said())
                node.process.kill()
                node.process.wait(SOON_S)
        assert not hung, f"did not stop: {hung}"
        tracebacks = [node.said() for node in self.nodes if "Traceback" in node.said()]
        assert not tracebacks, tracebacks[0]


_CHANGES_OUTPUT = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PYTHONWARNINGS", "GRPC_VERBOSITY", "GRPC_TRACE")


@contextlib.contextmanager
def swarm(home: Path) -> Iterator[Swarm]:
    """A swarm that is gone at the end."""
    made = Swarm(home)
    try:
        yield made
    finally:
        made.close()


def together(*nodes: Node) -> None:
    """Wait until each node sees all others."""
    ids = {n.id for n in nodes}
    for node in nodes:
        until(lambda node=node: ids <= node.peers() | {node.id}, f"node {node.id} sees {ids}")  # type: ignore[misc]


def slow(words: int, per_s: float, *answers: str) -> Sequence[str]:
    """Flags of a fake model that thinks for `words` tokens before each of its answers."""
    thoughts = " ".join(f"thought{i}" for i in range(words))
    said = "|".join(f"{thoughts} answer: {a}" for a in answers)
    return ["--backend", "fake", "--model", f"fake:answers={said},tokens_per_s={per_s:g}"]
