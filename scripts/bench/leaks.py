"""Ten thousand short requests, a third of them left by their clients at random: what the node's memory grows by.

    python scripts/bench/leaks.py [--quick] [--json]

A node on the bundled model as a real process; 16 clients at once ask through gRPC, with one to four candidates, log
probabilities and grammars among them, and no topics: those are kept, which is what they are for. Its resident memory is
read a hundred times while it is at work; growth is from the first twentieth after the warm-up (a fifth of all requests)
to the last twentieth.

Python takes memory from the system 1 MiB at a time, which is most of what the goal allows. What leaks goes on growing,
so the second half of the requests is looked at too.

Keys: `rss_growth` (share, the goal is below 0.01), `rss_growth_second_half`, `rss_mb`, `requests`, `cancelled`,
`leaked_sequences`, `seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc
import psutil

from node import wire
from node.v1 import generate_pb2, generate_pb2_grpc, types_pb2
from scripts.bench.running import Node, finish, node, table

REQUESTS = 10_000
CLIENTS = 16
# Caches grow up to their limits, by design: these are so low that they are reached in the warm-up.
CACHES = ("--kv-memory", "4", "--kv-disk", "16", "--disk-budget", "16")


def request(rng: random.Random, number: int) -> generate_pb2.StreamRequest:
    """A short question, with whatever a request may have."""
    params = types_pb2.SamplingParams(max_tokens=rng.randint(1, 12), seed=number)
    extra = rng.random()
    if extra < 0.1:
        params.logprobs, params.top_logprobs = True, rng.randint(0, 20)
    elif extra < 0.2:
        params.grammar = 'root ::= [0-9]+ "."'
    elif extra < 0.3:
        params.presence_penalty, params.repeat_penalty = 1.0, 1.1
    question = f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?"
    return generate_pb2.StreamRequest(
        request=generate_pb2.GenerateRequest(
            messages=[types_pb2.Message(role="user", content=question)],
            candidates=rng.randint(1, 4),
            params=params,
        )
    )


async def client(stub: generate_pb2_grpc.GenerateAsyncStub, todo: list[int], counts: dict[str, int]) -> None:
    while todo:
        number = todo.pop()
        rng = random.Random(number)
        call = stub.Stream(request(rng, number))
        leaves = rng.random() < 1 / 3
        after = rng.randint(0, 6)
        try:
            async for _ in call:
                if leaves and not after:
                    call.cancel()
                after -= 1
            counts["answered"] += 1
        except asyncio.CancelledError:
            counts["cancelled"] += 1
        except grpc.RpcError as e:
            if e.code() is not grpc.StatusCode.CANCELLED:
                raise
            counts["cancelled"] += 1


async def work(running: Node, requests: int) -> tuple[dict[str, int], list[float], list[float]]:
    """All requests; the node's resident memory in MiB at a hundred points on the way, and how much of it is pages of
    files (the program, its libraries and the model), which come in as they are first used."""
    process = psutil.Process(running.process.pid)
    todo = list(range(requests))
    counts = {"answered": 0, "cancelled": 0}
    memory: list[float] = []
    files: list[float] = []

    def look() -> None:
        info = process.memory_info()
        memory.append(info.rss / 2**20)
        files.append(info.shared / 2**20)

    async with grpc.aio.insecure_channel(running.address, options=wire.CHANNEL_OPTIONS) as channel:
        stub = generate_pb2_grpc.GenerateStub(channel)
        clients = [asyncio.create_task(client(stub, todo, counts)) for _ in range(CLIENTS)]
        while todo:
            if requests - len(todo) >= requests * len(memory) / 100:
                look()
            await asyncio.sleep(0.01)
        await asyncio.gather(*clients)
    look()
    return counts, memory, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    requests = REQUESTS // 10 if args.quick else REQUESTS
    with node("--join", "none", *CACHES, "--queue", "1000") as running:
        started = time.monotonic()
        counts, memory, files = asyncio.run(work(running, requests))
        seconds = time.monotonic() - started
        until = time.monotonic() + 5
        while (slots := running.status().slots).used and time.monotonic() < until:
            time.sleep(0.05)
    share = len(memory) // 20
    warm = len(memory) // 5
    half = statistics.median(memory[len(memory) // 2 : len(memory) // 2 + share])
    begin, end = statistics.median(memory[warm : warm + share]), statistics.median(memory[-share:])
    table(
        [
            ("requests done", *(f"{p} %" for p in range(0, 101, 10))),
            ("MiB", *(f"{memory[min(p, len(memory) - 1)]:.1f}" for p in range(0, 101, 10))),
            ("of it files", *(f"{files[min(p, len(files) - 1)]:.1f}" for p in range(0, 101, 10))),
        ]
    )
    print(
        f"\n{counts['answered']} answered, {counts['cancelled']} left, {seconds:.0f} s; sequences in use: {slots.used}"
    )
    figures: dict[str, object] = {
        "rss_growth": round(end / begin - 1, 4),
        "rss_growth_second_half": round(end / half - 1, 4),
        "rss_mb": round(end, 1),
        "requests": requests,
        "cancelled": counts["cancelled"],
        "leaked_sequences": slots.used,
        "seconds": round(seconds, 1),
    }
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
