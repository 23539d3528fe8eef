"""Thirty-two clients at once, prompts and answers of mixed lengths: tokens a second and who waits how long.

    python scripts/bench/clients.py [--part load|inter] [--clients 32] [--requests 2] [--rounds 2] [--quick] [--json]
    python scripts/bench/clients.py --part inter [--long 4000,8000,12000] [--stock] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0, two threads, f16 KV, flash attention. Each client sends its
requests one after the other, with prompts of 32 to 512 tokens that nobody has seen before and answers of 16 to 96
letters, so that each token is text at once; both programs get the same lengths and decode 16 sequences at once, so
clients wait for each other. Rounds go A B A B: ours, and llama-server on our kernels. On its own it takes several times
as long, so it is measured once.

Then (`--part inter` is this alone) one client writes alone, and again while a prompt of 4,000 tokens is computed beside
it, from its first token to its last: how much later the writer's tokens come, which is what chunked prefill is for, and
how long the prompt takes, which pays for it. `--stock` has the node compute with llama.cpp's own kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.candidates import OVERHEAD, THREADS, text
from scripts.bench.make_model import LETTERS, model

SEQUENCES = 16
CONTEXT = 1024
LONG = 4000
ANSWER = 200  # tokens of the one that writes alone: fewer say nothing of one in a hundred
WRITER = 3000  # of the one that writes beside a long prompt: more than it comes to


@dataclass(frozen=True)
class Length:
    """Tokens of one request."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Load:
    """What came of a load: generated tokens a second, and seconds until the first text, a request each."""

    speed: float
    waits: list[float]

    @property
    def worst(self) -> float:
        return max(self.waits) / statistics.median(self.waits)


def lengths(rng: random.Random, clients: int, requests: int) -> list[list[Length]]:
    return [[Length(rng.randint(32, 512), rng.randint(16, 96)) for _ in range(requests)] for _ in range(clients)]


def wish(rng: random.Random, length: Length) -> generate_pb2.StreamRequest:
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=text(rng, max(length.prompt - OVERHEAD, 1)))],
        candidates=1, scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(
            max_tokens=length.answer, seed=rng.randrange(1 << 32), ignore_eos=True,
            logit_bias=dict.fromkeys(LETTERS, 100.0),
        ),
    )  # fmt: skip
    return generate_pb2.StreamRequest(request=request)


def ours(node: running.Node, rng: random.Random, length: Length) -> list[float]:
    """When texts came, in seconds since the call."""
    request = wish(rng, length)
    times: list[float] = []
    started = time.perf_counter()
    for event in node.generate.Stream(request, timeout=600):
        if event.WhichOneof("event") == "token":
            times.append(time.perf_counter() - started)
    assert event.done.usage.completion_tokens == length.answer, event.done.usage
    return times


def theirs(server: rivals.Server, rng: random.Random, length: Length) -> list[float]:
    """When the first text came, in seconds since the call."""
    body = {
        "prompt": text(rng, length.prompt), "n_predict": length.answer, "ignore_eos": True, "cache_prompt": False,
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "logit_bias": [[t, 100] for t in LETTERS],
    }  # fmt: skip
    first, _, last = server.first_token(body)
    assert last["timings"]["predicted_n"] == length.answer
    return [first]


def load(ask: Callable[[random.Random, Length], list[float]], work: list[list[Length]]) -> Load:
    """Every client at once, each in a thread of its own."""

    def client(requests: list[Length]) -> list[float]:
        rng = random.Random(time.time_ns())
        return [ask(rng, length)[0] for length in requests]

    started = time.perf_counter()
    with ThreadPoolExecutor(len(work)) as pool:
        waits = [wait for each in pool.map(client, work) for wait in each]
    tokens = sum(length.answer for requests in work for length in requests)
    return Load(tokens / (time.perf_counter() - started), waits)


def alone(node: running.Node) -> list[float]:
    """Seconds between the tokens of one writer that nobody disturbs."""
    times = ours(node, random.Random(time.time_ns()), Length(64, ANSWER))
    return [b - a for a, b in pairwise(times[4:])]  # the first ones wait for its own prompt


def beside(node: running.Node, long: int) -> tuple[list[float], float]:
    """The same while one long prompt is computed; and the seconds until that one's first token."""
    times: list[float] = []
    writes = threading.Event()
    call = node.generate.Stream(wish(random.Random(time.time_ns()), Length(64, WRITER)), timeout=600)

    def write() -> None:
        with contextlib.suppress(grpc.RpcError):  # it is cancelled in the end
            for event in call:
                if event.WhichOneof("event") == "token":
                    times.append(time.perf_counter())
                    if len(times) == 4:
                        writes.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        writes.wait(60)
        began = time.perf_counter()
        took = ours(node, random.Random(time.time_ns()), Length(long, 1))[0]
        over = time.perf_counter()
        assert not writer.done(), f"the writer ended before the prompt: {len(times)} tokens"
        call.cancel()
        writer.result()
    during = [moment for moment in times if began <= moment <= over]
    return [b - a for a, b in pairwise(during)], took


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(int(0.99 * len(values)), len(values) - 1)]


def loads(path: Path, clients: int, requests: int, rounds: int) -> dict[str, object]:
    """Everybody at once; the figures."""
    mine: list[Load] = []
    other: list[Load] = []
    other_ours: list[Load] = []
    for i in range(rounds):
        work = lengths(random.Random(i), clients, requests)
        with running.node(
            "--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", str(CONTEXT),
            "--slots", str(SEQUENCES),
        ) as node:  # fmt: skip
            ours(node, random.Random(1), Length(32, 4))
            mine.append(load(lambda rng, length, node=node: ours(node, rng, length), work))  # type: ignore[misc]
        flags = ("-c", str(SEQUENCES * CONTEXT), "-np", str(SEQUENCES), "-kvu")
        for them, our_kernels in ((other_ours, True), (other, False))[: 1 if i else 2]:
            with rivals.server(path, *flags, threads=THREADS, our_kernels=our_kernels) as server:
                theirs(server, random.Random(1), Length(32, 4))
                them.append(load(lambda rng, length, server=server: theirs(server, rng, length), work))  # type: ignore[misc]
    rows: list[list[object]] = [["what", "tokens/s", "median wait, s", "longest", "longest/median"]]
    for name, them in (("ours", mine), ("llama-server", other), ("llama-server on our kernels", other_ours)):
        waits = [wait for each in them for wait in each.waits]
        speeds = " ".join(f"{each.speed:.1f}" for each in them)
        worst = f"{statistics.median(each.worst for each in them):.2f}"
        rows.append([name, speeds, f"{statistics.median(waits):.2f}", f"{max(waits):.2f}", worst])
    running.table(rows)
    print()
    return {
        "throughput_over_server": mine[0].speed / other[0].speed,
        "throughput_over_server_on_our_kernels": statistics.median(
            a.speed / b.speed for a, b in zip(mine, other_ours, strict=True)
        ),
        "max_wait_over_median": statistics.median(each.worst for each in mine),
        "server_max_wait_over_median": statistics.median(each.worst for each in other),
        "clients": clients,
        "requests": clients * requests,
    }


def inter(path: Path, lengths: Sequence[int], rounds: int, stock: bool) -> dict[str, object]:
    """One that writes beside a long prompt, and without; the figures, of the first length without its name."""
    undisturbed: list[float] = []
    disturbed: dict[int, list[float]] = {long: [] for long in lengths}
    firsts: dict[int, list[float]] = {long: [] for long in lengths}
    lonely: dict[int, float] = {}
    env = {"LLAMA_CPP_LIB_PATH": str(rivals.build())} if stock else {}
    context = str(max(lengths) + WRITER)
    with running.node(
        "--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", context, "--slots", "4",
        "--draft", "0", env=env,
    ) as node:  # fmt: skip
        ours(node, random.Random(1), Length(512, 4))
        for i in range(rounds):
            for long in lengths:
                undisturbed += alone(node)
                gaps, first = beside(node, long)
                disturbed[long] += gaps
                firsts[long].append(first)
                if not i:
                    lonely[long] = ours(node, random.Random(time.time_ns()), Length(long, 1))[0]
    rows: list[list[object]] = [
        ["time to a writer's next token, ms", "tokens", "median", "p99", "p99 over alone", "longest", "prompt, s"]
    ]
    rows.append(["alone", len(undisturbed), *_spread(undisturbed, undisturbed), ""])
    for long, values in disturbed.items():
        seconds = f"{statistics.median(firsts[long]):.1f} (nobody writes: {lonely[long]:.1f})"
        rows.append([f"a prompt of {long:,} tokens", len(values), *_spread(values, undisturbed), seconds])
    running.table(rows)
    figures: dict[str, object] = {"kernels": "llama.cpp" if stock else "ours"}
    for long, values in disturbed.items():
        name = "" if long == lengths[0] else f"_{long}"
        figures |= {
            f"inter_token_p99_with_prefill_over_without{name}": p99(values) / p99(undisturbed),
            f"inter_token_median_with_prefill_over_without{name}": (
                statistics.median(values) / statistics.median(undisturbed)
            ),
            f"prefill_with_writer_over_without{name}": statistics.median(firsts[long]) / lonely[long],
        }
    return figures


def _spread(values: Sequence[float], usual: Sequence[float]) -> list[str]:
    found = (statistics.median(values), p99(values))
    return [*(f"{each * 1e3:.1f}" for each in found), f"{found[1] / p99(usual):.2f}", f"{max(values) * 1e3:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["load", "inter"], help="one of the two alone")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--long", default=str(LONG), help="tokens of the prompts beside which one writes, with commas")
    parser.add_argument("--stock", action="store_true", help="one writes with llama.cpp's own kernels")
    parser.add_argument("--quick", action="store_true", help="12 clients with a request each, one round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    clients, requests, rounds = (12, 1, 1) if args.quick else (args.clients, args.requests, args.rounds)
    longs = [int(long) for long in args.long.split(",")]
    running.expect(
        (args.part != "inter") * (30 + clients * requests * (2.6 + 1.9 * rounds))
        + (args.part != "load") * (10 + rounds * (3 if args.stock else 1) * sum(10 + long / 100 for long in longs))
    )
    path = model("q8_0")
    figures: dict[str, object] = {}
    if args.part != "inter":
        figures |= loads(path, clients, requests, rounds)
    if args.part != "load":
        figures |= inter(path, longs, rounds, args.stock)
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
