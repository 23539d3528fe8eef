"""A model over two machines: what the network and our carrying cost, beside one machine and llama.cpp's own RPC.

    python scripts/bench/pool.py [--generate 64] [--rounds 5] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0; 512 prompt tokens, then one sequence decoded, two threads, f16
KV, flash attention. Twelve of its 24 layers are on a second process: over loopback, and over a link of 1 Gbit/s between
two network namespaces (as root; left out elsewhere). Each way is measured beside two others:

one     the whole model in one process
plain   llama.cpp's rpc-server that listens on an open port, without our carrying: the floor
stock   the same with the output on the lender, where llama.cpp puts it: the rival

What they write must be the same: `same_tokens` counts the greedy tokens up to the first that differs from those of one
machine, and `logit_difference` is the largest between the winning logits up to there (with random weights the second
best is often near, so rounding alone could change a token).

Workers of all kinds wait side by side and measure in turn (A B C A B C). They use the backend without the scheduler, so
what is compared is the computing and the way. Where both processes are on one machine they share its cores, but take
turns with them: more than one machine's speed cannot be had, and is not what this is for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from chaos.lan import Host, Lan, unavailable

from scripts.bench import running
from scripts.bench.make_model import model

PROMPT, LAYERS, LENT, THREADS = 512, 24, 12, 2
GBIT = 1000.0
PORT, LINK_BYTES = 7500, 256 << 20


# ---- in processes of their own ---------------------------------------------------------------------------------------


def serve(endpoint: str) -> None:
    """llama.cpp's server, as its own program runs it."""
    from node.engine.llamacpp import devices, native

    native.set_up()
    listed = (ctypes.c_void_p * 1)(devices.by_type(devices.CPU))
    devices.serve(endpoint, THREADS, listed)


def work(path: str, kind: str, where: str, generate: int) -> None:
    """Load the model, then measure once for each line that comes in."""
    from node.engine.llamacpp import LlamaBackend, LlamaOptions, Spread, devices

    if kind == "stock":
        devices._AT_HOME = b"^nothing$"
    borrowed = _Borrowed(where) if kind == "carried" else None
    endpoint = borrowed.endpoint if borrowed else where
    over = Spread(LAYERS, (devices.Lender(endpoint, LENT),)) if endpoint else None
    started = time.perf_counter()
    options = LlamaOptions(Path(path), "random", "fp", sequences=4, context=1024, threads=THREADS, spread=over)
    backend = LlamaBackend(options)
    said: dict[str, Any] = {"load_s": time.perf_counter() - started}
    print(json.dumps(said), flush=True)
    for _ in sys.stdin:
        said = _measure(backend, generate)
        print(json.dumps(said), flush=True)
    if borrowed is not None:
        backend.close()
        borrowed.close()
    os._exit(0)


def _measure(backend: object, generate: int) -> dict[str, Any]:
    from node.engine.backend import Row
    from node.engine.llamacpp import LlamaBackend

    assert isinstance(backend, LlamaBackend)
    backend.drop(0)
    started = time.perf_counter()
    backend.decode([Row(97 + i % 26, i, 0, i == PROMPT - 1) for i in range(PROMPT)])
    backend.top(PROMPT - 1, 1)
    prompted = time.perf_counter()
    row, tokens, logits = PROMPT - 1, [], []
    for position in range(PROMPT, PROMPT + generate):
        [(token, logit)] = backend.top(row, 1)
        tokens.append(int(token))
        logits.append(float(logit))
        backend.decode([Row(token, position, 0, True)])
        row = 0
    backend.top(row, 1)
    speed = generate / (time.perf_counter() - prompted)
    return {"prompt_s": prompted - started, "tokens_per_s": speed, "tokens": tokens, "logits": logits}


class _Borrowed:
    """A loan from a node at HOST:PORT, on an event loop of its own, as a node has it."""

    def __init__(self, where: str) -> None:
        import threading

        from node import backends
        from node.home import home
        from node.mesh.identity import Identity, load_token
        from node.mesh.peer import Peer
        from node.pool.loan import Loan

        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

        async def borrow() -> str:
            peer = Peer(Identity(load_token(home().config), "b" * 10), where)
            self._loan = Loan(peer, 1 << 30, backends.llama_version(), lambda e: os._exit(print(e.message) or 1))
            return await self._loan.open()

        self.endpoint = asyncio.run_coroutine_threadsafe(borrow(), self._loop).result(60)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loan.close(), self._loop).result(10)


# ---- from outside ----------------------------------------------------------------------------------------------------


class Worker:
    """A process that measures when it is asked to. `load_s`: what loading took, with the weights' journey."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.load_s = self._read()["load_s"]

    def measure(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            sys.exit(f"a worker ended: {line}")
        found: dict[str, Any] = json.loads(line)
        return found


class Place:
    """Where processes run: here, or on a host of a `Lan`."""

    def __init__(self, stack: contextlib.ExitStack, home: Path, host: Host | None = None) -> None:
        self._stack, self._home, self._host = stack, home, host
        self.ip = host.ip if host else "127.0.0.1"

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A process that ends with the benchmark."""
        command = [sys.executable, *argv]
        env = {**os.environ, "CONCLAVE_HOME": str(self._home), "CONCLAVE_INTERFACE": self.ip}
        process = subprocess.Popen(
            self._host.command(*command) if self._host else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
            cwd=running.ROOT,
        )  # fmt: skip
        self._stack.callback(_end, process)
        return process

    def reaches(self, port: int) -> bool:
        """Whether somebody listens on this place's port."""
        probe = f"import socket; socket.create_connection(({self.ip!r}, {port}), 1)"
        argv = [sys.executable, "-c", probe]
        command = self._host.command(*argv) if self._host else argv
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.communicate()


def _await(place: Place, port: int) -> None:
    until = time.monotonic() + 60
    while not place.reaches(port):
        if time.monotonic() > until:
            sys.exit(f"nothing listens on {place.ip}:{port}")
        time.sleep(0.1)


@contextlib.contextmanager
def workers(path: Path, generate: int, hosts: Sequence[Host] = ()) -> Iterator[dict[str, Worker]]:
    """A worker of each kind, with its lender: on this machine, or between two hosts."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-bench-")))
        near = Place(stack, home, hosts[0] if hosts else None)
        far = Place(stack, home, hosts[1] if hosts else None)
        node = ("-m", "node", "--backend", "fake", "--join", "none", "--pool", "1", "--http-port", "0")
        far.start(*node, "--port", str(PORT), "--mesh-port", str(PORT + 1), "--threads", str(THREADS))
        for port in (PORT + 2, PORT + 3):
            far.start(__file__, "--serve", f"{far.ip}:{port}")
        _await(far, PORT + 1)
        ends = {"one": "", "carried": f"{far.ip}:{PORT + 1}", "plain": PORT + 2, "stock": PORT + 3}
        made = {}
        for kind, end in ends.items():
            where = f"{far.ip}:{end}" if isinstance(end, int) else end
            if isinstance(end, int):
                time.sleep(3)  # the server serves one connection: it cannot be asked whether it is there
            made[kind] = Worker(near.start(__file__, "--work", str(path), kind, where, "--generate", str(generate)))
        yield made


def link_mb_per_s(hosts: Sequence[Host]) -> float:
    """What a bare TCP connection carries between two hosts."""
    sink = (
        f"import socket; s = socket.create_server(({hosts[1].ip!r}, 7600)); c, _ = s.accept()\n"
        f"while c.recv(1 << 20): pass"
    )
    source = (
        f"import socket, time; s = socket.create_connection(({hosts[1].ip!r}, 7600)); t = time.perf_counter()\n"
        f"for _ in range({LINK_BYTES >> 20}): s.sendall(bytes(1 << 20))\n"
        "s.shutdown(1); s.recv(1); print(time.perf_counter() - t)"
    )
    with subprocess.Popen(hosts[1].command(sys.executable, "-c", sink)):
        time.sleep(1)
        took = float(hosts[0].do(sys.executable, "-c", source))
    return LINK_BYTES / took / 1e6


def compare(
    path: Path, generate: int, rounds: int, hosts: Sequence[Host] = ()
) -> tuple[list[list[object]], dict[str, float]]:
    """A table's rows, and ratios of paired rounds."""
    with workers(path, generate, hosts) as made:
        for worker in made.values():
            worker.measure()
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in made}
        for _ in range(rounds):
            for kind, worker in made.items():
                found[kind].append(worker.measure())
        rows: list[list[object]] = []
        for kind, each in found.items():
            prompt = statistics.median(m["prompt_s"] for m in each)
            speed = statistics.median(m["tokens_per_s"] for m in each)
            same = min(_same(a, b)[0] for a, b in zip(each, found["one"], strict=True))
            rows.append([kind, f"{made[kind].load_s:.1f}", f"{prompt:.2f}", f"{speed:.1f}", f"{same} of {generate}"])
        ratios = {"carried_load_s": made["carried"].load_s, "plain_load_s": made["plain"].load_s}
        both = [_same(a, b) for a, b in zip(found["carried"], found["one"], strict=True)]
        ratios["same_tokens"] = min(count for count, _ in both)
        ratios["logit_difference"] = max(difference for _, difference in both)
        for other in ("one", "plain", "stock"):
            pairs = list(zip(found["carried"], found[other], strict=True))
            ratios[f"decode_over_{other}"] = statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs)
            ratios[f"prompt_over_{other}"] = statistics.median(a["prompt_s"] / b["prompt_s"] for a, b in pairs)
    return rows, ratios


def _same(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, float]:
    """Tokens up to the first that differs, and the largest difference of their logits."""
    pairs = zip(one["tokens"], other["tokens"], strict=True)
    count = next((i for i, (a, b) in enumerate(pairs) if a != b), len(one["tokens"]))
    both = list(zip(one["logits"], other["logits"], strict=True))
    return count, max((abs(a - b) for a, b in both[:count]), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.work:
        work(*options.work, options.generate)
        return
    if options.quick:
        options.generate, options.rounds = 24, 1
    import rpc

    os.environ["PYTHONPATH"] = str(rpc.folder())
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    path = model()
    head = ["", "loaded in s", "prompt of 512, s", "tokens/s", "as one machine's"]
    figures: dict[str, object] = {}
    rows, ratios = compare(path, options.generate, options.rounds)
    print("\nover loopback\n")
    running.table([head, *rows])
    figures |= {f"loopback_{name}": round(value, 3) for name, value in ratios.items()}
    if problem := unavailable():
        print(f"\nno link of 1 Gbit/s: {problem}")
    else:
        lan = Lan(2)
        try:
            lan.limit(GBIT)
            raw = link_mb_per_s(lan.hosts)
            rows, ratios = compare(path, options.generate, options.rounds, lan.hosts)
        finally:
            lan.close()
        print(f"\nover 1 Gbit/s (a bare connection carries {raw:.0f} MB/s)\n")
        running.table([head, *rows])
        figures |= {"link_mb_per_s": round(raw, 1)}
        figures |= {f"gbit_{name}": round(value, 3) for name, value in ratios.items()}
    print("\n" + ", ".join(f"{name} {value}" for name, value in figures.items()))
    running.finish(figures, as_json=options.json)


if __name__ == "__main__":
    main()
