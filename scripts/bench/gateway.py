"""What HTTP costs over gRPC, a request and a token; and 64 clients that stream, for a minute.

    python scripts/bench/gateway.py [--rounds 300] [--streams 20] [--seconds 60] [--quick] [--json]

The model is the fake one, which computes nothing, so what is measured is the way from the socket to the scheduler and
back. The floor is the same request through gRPC on the same node; pairs go A B A B. Both clients are the plain ones of
Python: grpcio's, and http.client's on a connection that stays open. The streaming clients are wrk's (Debian's package);
without it that part is left out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import running

WORDS = 1000
CLIENTS = 64
WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model": "fake", "stream": true, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}'
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format("RESULT %d %d %d %d", summary.requests, e.connect + e.read + e.write, e.status, e.timeout))
end
"""


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Ways:
    """The same request by both ways."""

    def __init__(self, node: running.Node, http_address: str) -> None:
        self.node = node
        self.connection = http.client.HTTPConnection(http_address)

    def grpc(self, tokens: int) -> generate_pb2.GenerateRequest:
        return generate_pb2.GenerateRequest(
            messages=[types_pb2.Message(role="user", content="hi")],
            candidates=1,
            strategy="majority",
            scope=generate_pb2.SCOPE_LOCAL,
            params=types_pb2.SamplingParams(max_tokens=tokens),
        )

    def body(self, tokens: int, *, stream: bool) -> str:
        messages = [{"role": "user", "content": "hi"}]
        return json.dumps({"model": "fake", "max_tokens": tokens, "stream": stream, "messages": messages})

    def request_by_grpc(self) -> None:
        self.node.generate.Generate(self.grpc(1))

    def request_by_http(self) -> None:
        self.connection.request("POST", "/v1/chat/completions", self.body(1, stream=False))
        answer = self.connection.getresponse()
        json.loads(answer.read())
        assert answer.status == 200

    def stream_by_grpc(self) -> None:
        seen = 0
        for event in self.node.generate.Stream(generate_pb2.StreamRequest(request=self.grpc(WORDS))):
            seen += event.WhichOneof("event") == "token"
        assert seen == WORDS, seen

    def stream_by_http(self) -> None:
        self.connection.request("POST", "/v1/chat/completions", self.body(WORDS, stream=True))
        answer = self.connection.getresponse()
        seen = 0
        for line in answer:
            if line.startswith(b"data: {"):
                seen += bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))
        assert seen == WORDS, seen


def pairs(floor: Callable[[], None], ours: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    for call in (floor, ours) * 3:  # warm
        call()
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        found[0].append(timed(floor))
        found[1].append(timed(ours))
    return found


def crowd(address: str, process: psutil.Process, seconds: int) -> dict[str, object]:
    """wrk's clients, each with a stream after the other; the node's memory after a fifth of the time and at the end."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK)
        script.flush()
        command = ["wrk", "-t2", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "20s", "-s", script.name]
        run = subprocess.Popen([*command, f"http://{address}/v1/chat/completions"], stdout=subprocess.PIPE, text=True)
        time.sleep(seconds / 5)
        early = process.memory_info().rss
        said, _ = run.communicate(timeout=seconds + 60)
    late = process.memory_info().rss
    result = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", said)
    assert result is not None, said
    requests, broken, refused, late_ones = map(int, result.groups())
    return {
        "wrk_streams_per_s": round(requests / seconds, 1),
        "wrk_errors": broken + refused + late_ones,
        "wrk_memory_growth_mb": round((late - early) / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="50 rounds, 5 streams, 10 seconds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, streams, seconds = (50, 5, 10) if args.quick else (args.rounds, args.streams, args.seconds)
    port = running.free_port()
    words = " ".join(f"w{i % 10}" for i in range(WORDS))
    flags = ["--join", "none", "--backend", "fake", "--model", f"fake:answers={words}", "--http-port", str(port)]
    flags += ["--draft", "0"]  # the words come again, and several guessed at once are one event
    os.environ.pop("CONCLAVE_API_KEY", None)
    figures: dict[str, object] = {}
    with running.node(*flags) as node:
        ways = Ways(node, f"127.0.0.1:{port}")
        floor, ours = pairs(ways.request_by_grpc, ways.request_by_http, rounds)
        extra = statistics.median(b - a for a, b in zip(floor, ours, strict=True))
        figures["http_request_extra_ms"] = round(extra * 1e3, 3)
        rows = [("request", *(f"{statistics.median(f) * 1e3:.2f} ms" for f in (floor, ours)), f"{extra * 1e3:.2f} ms")]
        floor, ours = pairs(ways.stream_by_grpc, ways.stream_by_http, streams)
        extra = statistics.median((b - a) / WORDS for a, b in zip(floor, ours, strict=True))
        figures["http_token_extra_us"] = round(extra * 1e6, 1)
        each = [f"{statistics.median(f) / WORDS * 1e6:.0f} µs" for f in (floor, ours)]
        rows.append(("token of a stream", *each, f"{extra * 1e6:.0f} µs"))
        running.table([("what", "gRPC", "HTTP", "HTTP more by"), *rows])
        if shutil.which("wrk"):
            figures |= crowd(f"127.0.0.1:{port}", psutil.Process(node.process.pid), seconds)
            print(f"\n{CLIENTS} clients for {seconds} s, 64 tokens a stream:")
            running.table([("streams/s", "errors", "memory growth, MB"), [*list(figures.values())[2:]]])
        else:
            print("\nwrk is not installed (apt-get install wrk): the part with many clients is left out")
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
