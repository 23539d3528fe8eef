"""The rivals as processes: llama-server over HTTP on loopback, and llama-batched-bench. Built by build_rivals.sh."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.bench.running import ROOT, free_port

# As our node sets it: with the default, one busy neighbour makes a step many times slower.
ENV = {**os.environ, "GOMP_SPINCOUNT": "1000"}
OUR_LIBRARIES = Path(next(iter(find_spec("llama_cpp").submodule_search_locations or []))) / "lib"  # type: ignore[union-attr]


def build() -> Path:
    """The directory of the binaries; builds them at the first call (16 CPU-minutes)."""
    out = subprocess.run(
        [str(ROOT / "scripts/bench/build_rivals.sh")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(out.stdout.splitlines()[-1])


class Server:
    """A running llama-server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._port = port

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One JSON call."""
        connection = self._send(path, body)
        with contextlib.closing(connection):
            response = connection.getresponse()
            data: dict[str, Any] = json.loads(response.read())
            if response.status != 200:
                raise RuntimeError(f"llama-server: {response.status} {data}")
            return data

    def first_token(self, body: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
        """Stream /completion: (seconds to the first token, to the end, the last event)."""
        started = time.perf_counter()
        connection = self._send("/completion", {**body, "stream": True})
        first = 0.0
        last: dict[str, Any] = {}
        with contextlib.closing(connection):
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    first = first or time.perf_counter() - started
                    last = json.loads(line[6:])
        return first, time.perf_counter() - started, last

    def _send(self, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection


@contextlib.contextmanager
def server(
    model: Path, *flags: str, threads: int = 2, wait_s: float = 120, our_kernels: bool = False
) -> Iterator[Server]:
    """A llama-server with our settings: flash attention on, the same threads, no user interface, no warm-up prompts.

    `our_kernels` runs it on the libraries that our node loads: what is left is the difference between the programs.
    """
    port = free_port()
    env = {**ENV, "LD_LIBRARY_PATH": str(OUR_LIBRARIES)} if our_kernels else ENV
    command = [
        str(build() / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", str(port),
        "-t", str(threads), "-tb", str(threads), "-fa", "on", *flags,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + wait_s
            while not _is_healthy(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"llama-server did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield Server(process, port)
        finally:
            process.terminate()
            process.wait()


def _is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as c:
        c.request("GET", "/health")
        return c.getresponse().status == 200
    return False


def batched_bench(
    model: Path, prompt: int, generate: int, parallel: Sequence[int], threads: int = 2
) -> dict[int, dict[str, float]]:
    """llama-batched-bench with a shared prompt: by batch size, its figures (t, t_pp, t_tg in s, speed_tg in tok/s)."""
    context = prompt + max(parallel) * generate + 64
    out = subprocess.run(
        [
            str(build() / "llama-batched-bench"), "-m", str(model), "-c", str(context), "-npp", str(prompt),
            "-ntg", str(generate), "-npl", ",".join(map(str, parallel)), "-pps", "-kvu", "-t", str(threads),
            "-tb", str(threads), "-fa", "on", "--output-format", "jsonl",
        ],
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    return {row["pl"]: row for row in rows}
