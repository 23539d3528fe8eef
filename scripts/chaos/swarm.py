"""Nodes, one a host of a `Lan`, as their owners run them; each has a home of its own, and all have one token."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from chaos.lan import Host, Lan
from node.v1 import generate_pb2_grpc, kvsync_pb2, kvsync_pb2_grpc, mesh_pb2, mesh_pb2_grpc, types_pb2

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 90.0  # for what takes a second on a quiet machine
STEP_S = 0.02


def until(
    condition: Callable[[], object], what: str, within: float = SOON_S, instead: Callable[[], str] = lambda: ""
) -> float:
    """Waits for a condition to be true; returns how many seconds it took. `instead` says what is the case."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within, f"not within {within:g} s: {what}; {instead()}"
        time.sleep(STEP_S)
    return time.monotonic() - started


@dataclass
class Machine:
    """A host with its node, while it runs one. `address` leads to the node's listener for clients, from anywhere."""

    host: Host
    home: Path
    address: str
    process: subprocess.Popen[bytes] | None = None
    id: str = ""
    started: float = 0.0
    channel: grpc.Channel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        self.channel = grpc.insecure_channel(self.address, options=options)
        self.mesh = mesh_pb2_grpc.MeshStub(self.channel)
        self.generate = generate_pb2_grpc.GenerateStub(self.channel)
        self.kvsync = kvsync_pb2_grpc.KVSyncStub(self.channel)

    @property
    def log(self) -> Path:
        """What the node wrote, over all its lives."""
        return self.home / "log"

    @property
    def clock(self) -> Path:
        """By how much its wall clock is ahead."""
        return self.home / "clock"

    def set_clock(self, ahead_s: float) -> None:
        """Have its wall clock jump to so many seconds ahead of the true time, if its swarm has clocks."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:  # in place: it is mapped by the node
            file.write(struct.pack("d", ahead_s))

    def said(self) -> str:
        """The text of `log`."""
        return self.log.read_text(errors="replace")

    def status(self, timeout_s: float = 30.0) -> mesh_pb2.StatusResponse:
        """What the node says. Raises grpc.RpcError."""
        return self.mesh.Status(mesh_pb2.StatusRequest(), timeout=timeout_s)

    def nodes(self) -> list[types_pb2.NodeInfo]:
        """All nodes that it remembers, itself first; none while it does not answer."""
        try:
            return list(self.status(5.0).nodes)
        except grpc.RpcError:
            return []

    def peers(self) -> set[str]:
        """Ids of the other nodes that it holds for alive."""
        return {n.id for n in self.nodes() if n.state == "alive" and n.id != self.id}

    def has_left(self, id: str) -> bool:
        """Whether it answers, and does not know a node (any more)."""
        nodes = self.nodes()
        return bool(nodes) and id not in {n.id for n in nodes}

    def version(self, topic: str) -> tuple[int, int, str] | None:
        """The version of a topic that it holds; None: none, or it does not answer."""
        try:
            topics = self.status(5.0).topics
        except grpc.RpcError:
            return None
        return next((_version(t.version) for t in topics if t.topic == topic), None)

    def show(self, topic: str) -> kvsync_pb2.ShowResponse | None:
        """A topic in full; None if it does not hold it, or does not answer."""
        try:
            return self.kvsync.Show(kvsync_pb2.ShowRequest(topic=topic), timeout=30)
        except grpc.RpcError:
            return None

    def state_of(self, id: str) -> str:
        """What it holds a node for; empty if it does not know it, or does not say."""
        return next((n.state for n in self.nodes() if n.id == id), "")

    def signal(self, number: signal.Signals) -> None:
        """Send its node a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, within: float = SOON_S) -> int | None:
        """Ask its node to stop; its exit code, None if it had to be killed."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            code: int | None = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self.process = None
        return code


def _clock(home: Path) -> Path:
    """The library that makes a wall clock that can be set (`clock.c`)."""
    made = home / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", made, source], check=True)
    return made


def _version(v: types_pb2.Version) -> tuple[int, int, str]:
    return v.epoch, v.turn, v.node_id


class Swarm:
    """A machine on each host of a lan, none running a node yet. With `clocks` their wall clocks can be set."""

    def __init__(self, lan: Lan, home: Path, token: str, *, clocks: bool = False) -> None:
        self.lan = lan
        self.token = token
        self.machines = [Machine(h, home / f"host{h.index}", lan.relay(h, 7420)) for h in lan.hosts]
        for machine in self.machines:
            machine.home.mkdir(parents=True, exist_ok=True)
            machine.set_clock(0.0)
        self._preload = {"LD_PRELOAD": str(_clock(home))} if clocks else {}

    def start(self, machine: Machine, *flags: str, token: str = "") -> None:
        """Start a machine's node; `ready` waits for it."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("CONCLAVE_")}
        argv = [sys.executable, "-m", "node", "--port", "7420", "--mesh-port", "7421", "--token", token or self.token]
        with machine.log.open("ab") as out:
            machine.process = subprocess.Popen(
                machine.host.command(*argv, *flags),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env
                | {"CONCLAVE_HOME": str(machine.home), "PYTHONUNBUFFERED": "1"}
                | self._preload
                | {"CHAOS_CLOCK": str(machine.clock)},
                cwd=ROOT,
            )
        machine.started = time.monotonic()

    def ready(self, machines: Sequence[Machine] | None = None) -> None:
        """Wait until nodes serve."""
        for machine in machines or self.machines:

            def here(machine: Machine = machine) -> bool:
                assert machine.process is not None
                code = machine.process.poll()
                assert code is None, f"a node ended with {code}: {machine.said()}"
                # Looked at by name: `running_nodes` sees only those of the network that it is asked from.
                nodes = machine.nodes() if any((machine.home / "run" / "nodes").glob("*.json")) else []
                machine.id = nodes[0].id if nodes else ""
                return bool(nodes)

            until(here, f"the node on {machine.host.ip} starts")

    def see_each_other(self, machines: Sequence[Machine] | None = None) -> bool:
        """Whether each of these nodes holds all the others of them for alive, and nobody else."""
        here = machines or self.machines
        ids = {m.id for m in here}
        return all(m.peers() == ids - {m.id} for m in here)

    def views(self) -> str:
        """Who holds whom for what, a line for each node."""
        names = {m.id: m.host.index for m in self.machines}
        return "".join(
            f"\n  {m.host.index} {m.id}: "
            + ", ".join(f"{names.get(n.id, n.id)} {n.state} {n.address} {n.incarnation % 100000}" for n in m.nodes())
            for m in self.machines
        )

    def close(self) -> None:
        """End what still runs; none may hang, and none may have shown a traceback."""
        hung = [m.host.ip for m in self.machines if m.end() is None]
        for machine in self.machines:
            machine.channel.close()
        assert not hung, f"did not stop within {SOON_S:g} s: {hung}"
        for machine in self.machines:
            if machine.log.exists():
                assert "Traceback" not in machine.said(), machine.said()
