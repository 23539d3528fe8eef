"""Ten thousand short requests, a third of them left by their clients at random: what the node's memory grows by.

    python scripts/bench/leaks.py [--topics] [--over http] [--held] [--leak 100] [--requests 10000] [--quick] [--json]

A node on the bundled model as a real process; 16 clients at once ask through gRPC or HTTP, with one to four candidates,
log probabilities and grammars among them. With `--topics` each client begins a topic, says four things in it and has it
forgotten, with a hundred names in turn; else there are none: those are kept, which is what they are for.

Half as many requests come before, as a warm-up. In it fill what has a limit: the last 1,024 answers (after 1,500
requests, as a third is left), parked KV, whose limits are set low for that, and Python's free lists of tuples, a
megabyte, which a full garbage collection empties, every 2,000 requests. (With topics the last 4,096 requests are known
by their ids, which takes longer than the warm-up.) After it and at the end resident memory is the median of what it is
during 500 requests; the middle is looked at too, since what leaks goes on growing as it began. Beside it stands what
the measure was before: from 2,000 to 10,000 of all requests.

Resident memory has free room between the allocations in it, which varies by more than a small leak. `--held` asks the
allocators of the node thirty times for what is in use, without that room, while no request runs, and tells the slope of
it after the warm-up: so a leak of a few tens of bytes a request is seen. `--leak N` has the node keep N bytes of each
request: what that would look like. Both need glibc, and collect the node's garbage each time, which a node by itself
does later.

Keys: `rss_growth` (share, the goal is below 0.01), `rss_growth_second_half`, `rss_growth_2000_to_10000`, `rss_mb`,
`requests` (without the warm-up), `cancelled`, `leaked_sequences`, `seconds`; with `--held` or `--leak` also
`held_bytes_per_request`, `held_growth` (share of `rss_mb`, over the requests).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc
import httpx2
import numpy as np
import psutil

from node import wire
from node.v1 import generate_pb2, generate_pb2_grpc, kvsync_pb2, kvsync_pb2_grpc, types_pb2
from scripts.bench.running import Node, finish, free_port, node, table

REQUESTS = 10_000
CLIENTS = 16
TOPICS = 100
TURNS = 4
LOOKS = 30
# Caches grow up to their limits, by design: these are so low that they are reached in the warm-up.
CACHES = ("--kv-memory", "4", "--kv-disk", "16", "--disk-budget", "16")


def params(rng: random.Random, number: int) -> types_pb2.SamplingParams:
    """Whatever a request may have."""
    params = types_pb2.SamplingParams(max_tokens=rng.randint(1, 12), seed=number)
    extra = rng.random()
    if extra < 0.1:
        params.logprobs, params.top_logprobs = True, rng.randint(0, 20)
    elif extra < 0.2:
        params.grammar = 'root ::= [0-9]+ "."'
    elif extra < 0.3:
        params.presence_penalty, params.repeat_penalty = 1.0, 1.1
    return params


def question(rng: random.Random) -> str:
    return f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?"


class ByGrpc:
    """A node's gRPC listener."""

    def __init__(self, running: Node) -> None:
        self._channel = grpc.aio.insecure_channel(running.address, options=wire.CHANNEL_OPTIONS)
        self._generate = generate_pb2_grpc.GenerateStub(self._channel)
        self._topics = kvsync_pb2_grpc.KVSyncStub(self._channel)

    async def ask(self, number: int, topic: str, *, is_first: bool) -> bool:
        """One request. Says whether it was answered, and not left."""
        rng = random.Random(number)
        sampled = params(rng, number)
        request = generate_pb2.GenerateRequest(
            messages=[types_pb2.Message(role="user", content=question(rng))],
            candidates=rng.randint(1, 4),
            params=sampled,
            topic=topic,
            append=bool(topic),
            begin=is_first and bool(topic),
        )
        call = self._generate.Stream(generate_pb2.StreamRequest(request=request))
        leaves, after = rng.random() < 1 / 3, rng.randint(0, 6)
        try:
            async for _ in call:
                if leaves and not after:
                    call.cancel()
                after -= 1
        except asyncio.CancelledError:
            return False
        except grpc.RpcError as e:
            if e.code() is grpc.StatusCode.NOT_FOUND and topic:  # its first turn was left
                return False
            if e.code() is not grpc.StatusCode.CANCELLED:
                raise
            return False
        return True

    async def forget(self, topic: str) -> None:
        try:
            await self._topics.Forget(kvsync_pb2.ForgetRequest(topic=topic))
        except grpc.RpcError as e:
            if e.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    async def close(self) -> None:
        await self._channel.close()


class ByHttp:
    """A node's HTTP listener, through OpenAI's chat completions."""

    def __init__(self, port: int) -> None:
        self._client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)

    async def ask(self, number: int, topic: str, *, is_first: bool) -> bool:
        """One request. Says whether it was answered, and not left."""
        rng = random.Random(number)
        sampled = params(rng, number)
        body: dict[str, object] = {
            "model": "conclave",
            "stream": True,
            "messages": [{"role": "user", "content": question(rng)}],
            "conclave": {"candidates": rng.randint(1, 4), "events": True},
            "max_tokens": sampled.max_tokens,
            "seed": number,
        }
        if sampled.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampled.top_logprobs}
        if sampled.grammar:
            body["grammar"] = sampled.grammar
        if sampled.presence_penalty:
            body |= {"presence_penalty": 1.0, "repeat_penalty": 1.1}
        if topic:
            body["topic"] = topic
        leaves, after = rng.random() < 1 / 3, rng.randint(0, 6)
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                if leaves and not after:
                    return False
                after -= bool(line)
        return True

    async def forget(self, topic: str) -> None:
        (await self._client.delete(f"/v1/topics/{topic}")).read()

    async def close(self) -> None:
        await self._client.aclose()


class Gate:
    """Lets clients through, unless it is shut."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0

    @contextlib.asynccontextmanager
    async def through(self) -> AsyncIterator[None]:
        await self._open.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextlib.asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """While it lasts nobody is inside."""
        self._open.clear()
        while self._inside:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._open.set()


async def client(way: ByGrpc | ByHttp, todo: list[int], counts: dict[str, int], gate: Gate, *, topics: bool) -> None:
    while todo:
        async with gate.through():
            await visit(way, todo, counts, topics=topics)


async def visit(way: ByGrpc | ByHttp, todo: list[int], counts: dict[str, int], *, topics: bool) -> None:
    """One request; with topics, a conversation from its beginning until it is forgotten."""
    counts["visits"] += 1
    topic = f"topic-{counts['visits'] % TOPICS}" if topics else ""
    for turn in range(TURNS if topics else 1):
        if todo:
            answered = await way.ask(todo.pop(), topic, is_first=not turn)
            counts["answered" if answered else "cancelled"] += 1
    if topic:
        await way.forget(topic)


class Held:
    """What the allocators of a watched node count."""

    def __init__(self, process: psutil.Process, place: Path) -> None:
        self._process = process
        self._place = place
        self.found: list[tuple[int, int]] = []  # (requests done, bytes)

    def look(self, done: int) -> None:
        """Ask, and wait for the answer."""
        self._place.unlink(missing_ok=True)
        os.kill(self._process.pid, signal.SIGUSR1)
        until = time.monotonic() + 60
        while not self._place.exists() and time.monotonic() < until:
            time.sleep(0.01)
        self.found.append((done, int(self._place.read_text())))

    def slope(self, warm: float) -> float:
        """Bytes a request, by least squares, after a share of the looks."""
        done, held = np.array(self.found[round(len(self.found) * warm) :], dtype=float).T
        return float(np.polyfit(done, held, 1)[0])


@dataclass(frozen=True, slots=True)
class Look:
    """Resident memory after so many requests, MiB, and how much of it is pages of files (the program, its libraries and
    the model), which come in as they are first used."""

    done: int
    rss: float
    files: float


async def work(
    running: Node, total: int, way: Callable[[], ByGrpc | ByHttp], place: Path | None, *, topics: bool
) -> tuple[dict[str, int], list[Look], Held | None]:
    """All requests, and what was seen on the way."""
    process = psutil.Process(running.process.pid)
    held = Held(process, place) if place is not None else None
    todo = list(range(total))
    counts = {"answered": 0, "cancelled": 0, "visits": 0}
    looks: list[Look] = []

    def look() -> None:
        info = process.memory_info()
        looks.append(Look(total - len(todo), info.rss / 2**20, info.shared / 2**20))

    by, gate = way(), Gate()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(by, todo, counts, gate, topics=topics))
        while todo:
            done = total - len(todo)
            if done >= total * len(looks) / 150:
                look()
            if held is not None and done >= total * len(held.found) / LOOKS:
                async with gate.shut():
                    await asyncio.to_thread(held.look, total - len(todo))
            await asyncio.sleep(0.01)
    look()
    if held is not None:
        await asyncio.to_thread(held.look, total)
    await by.close()
    return counts, looks, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", action="store_true")
    parser.add_argument("--over", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    requests = args.requests or (REQUESTS // 10 if args.quick else REQUESTS)
    total = requests + requests // 2
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "held" if args.held or args.leak else None
        program = ("scripts.bench.watched", str(place), str(args.leak)) if place else ("node",)
        with node("--join", "none", *CACHES, "--queue", "1000", "--http-port", str(port), program=program) as running:
            way = (lambda: ByHttp(port)) if args.over == "http" else (lambda: ByGrpc(running))
            started = time.monotonic()
            counts, looks, held = asyncio.run(work(running, total, way, place, topics=args.topics))
            seconds = time.monotonic() - started
            until = time.monotonic() + 5
            while (slots := running.status().slots).used and time.monotonic() < until:
                time.sleep(0.05)

    def at(share: float) -> float:
        """What is resident during a thirtieth of all requests, from a share of them on."""
        here = [look.rss for look in looks if share * total <= look.done <= (share + 1 / 30) * total]
        return statistics.median(here or [looks[-1].rss])

    shown = [min(looks, key=lambda look: abs(look.done - part * total / 10)) for part in range(11)]
    table(
        [
            ("requests done", *(f"{look.done:,}" for look in shown)),
            ("MiB", *(f"{look.rss:.1f}" for look in shown)),
            ("of it files", *(f"{look.files:.1f}" for look in shown)),
            *([("held", *(f"{b / 2**20:.2f}" for _, b in held.found[::3]))] if held else []),
        ]
    )
    print(
        f"\n{counts['answered']} answered, {counts['cancelled']} left, {seconds:.0f} s; sequences in use: {slots.used}"
    )
    begin, end = at(1 / 3), at(29 / 30)
    figures: dict[str, object] = {
        "rss_growth": round(end / begin - 1, 4),
        "rss_growth_second_half": round(end / at(2 / 3) - 1, 4),
        "rss_growth_2000_to_10000": round(at(19 / 30) / at(4 / 30) - 1, 4),
        "rss_mb": round(end, 1),
        "requests": requests,
        "cancelled": counts["cancelled"],
        "leaked_sequences": slots.used,
        "seconds": round(seconds, 1),
    }
    if held is not None:
        figures["held_bytes_per_request"] = round(held.slope(1 / 3), 1)
        figures["held_growth"] = round(held.slope(1 / 3) * requests / (begin * 2**20), 4)
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
