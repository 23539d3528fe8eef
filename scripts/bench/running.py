"""What benchmarks share: nodes as real processes on loopback, and the table and JSON line that they print."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil

from node import wire
from node.v1 import generate_pb2_grpc, mesh_pb2, mesh_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


class Node:
    """A running node and its stubs."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.address = address
        self.channel = grpc.insecure_channel(address, options=wire.CHANNEL_OPTIONS)
        self.generate = generate_pb2_grpc.GenerateStub(self.channel)
        self.mesh = mesh_pb2_grpc.MeshStub(self.channel)

    def status(self) -> mesh_pb2.StatusResponse:
        return self.mesh.Status(mesh_pb2.StatusRequest(), timeout=2)


def cpu_ms(pid: int) -> float:
    """Milliseconds of processor time that a process has used, all its threads: what other programs do to the clock on
    the wall is not in it. Of Linux to the nanosecond, elsewhere to the system's tick."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((t / "schedstat").read_text().split()[0]) for t in threads) / 1e6
    except (OSError, IndexError):
        times = psutil.Process(pid).cpu_times()
        return (times.user + times.system) * 1e3


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def node(
    *flags: str,
    home: Path | None = None,
    wait_s: float = 120,
    cpus: Sequence[int] = (),
    program: Sequence[str] = ("node",),
    env: Mapping[str, str] | None = None,
) -> Iterator[Node]:
    """A node of its own mesh (or of `home`'s), ended when the block ends. `cpus` pins it; `program` is the module to
    run and its first words, `env` more of its environment."""
    with contextlib.ExitStack() as stack:
        where = home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-bench-")))
        port, mesh_port = free_port(), free_port()
        own = {"CONCLAVE_HOME": str(where), "CONCLAVE_INTERFACE": "127.0.0.1"}
        command = [sys.executable, "-m", *program, "--port", str(port), "--mesh-port", str(mesh_port), *flags]
        if cpus:
            command = ["taskset", "-c", ",".join(map(str, cpus)), *command]
        log = stack.enter_context((where / f"log-{port}").open("wb"))
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **own, **(env or {})}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            running = Node(process, f"127.0.0.1:{port}")
            stack.callback(running.channel.close)
            until = time.monotonic() + wait_s
            while True:
                try:
                    running.status()
                    break
                except grpc.RpcError:
                    if process.poll() is not None or time.monotonic() > until:
                        sys.exit(f"the node did not start: {(where / f'log-{port}').read_text()}")
                    time.sleep(0.05)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def machine() -> str:
    """One line: what ran this."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    python = platform.python_version()
    return f"{cpu}, {os.cpu_count()} cores; Python {python}, llama-cpp-python {version('llama-cpp-python')}"


def table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as Markdown, the first as the head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in body:
        print("| " + " | ".join(row) + " |")


def expect(seconds: float) -> None:
    """Say how long it is going to take on two quiet cores of the machine of RESULTS.md."""
    print(f"this takes about {seconds / 60:.0f} min" if seconds >= 90 else "this takes about a minute", file=sys.stderr)


def finish(figures: dict[str, object], *, as_json: bool) -> None:
    """The last line of a benchmark under --json."""
    print(f"\n{machine()}")
    if as_json:
        print(json.dumps(figures))
