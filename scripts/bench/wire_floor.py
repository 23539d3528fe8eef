"""The floor of a vote over the mesh: bare grpc.aio with the mesh's certificates, one server a process, no node at all.

    python scripts/bench/wire_floor.py [--nodes 2,8,32] [--rounds 60]

A round is a streaming call to every server at once, as Poll is, each answered with one message of a ballot's size; the
median of the rounds. What a vote takes beyond that is ours. `mesh.py` runs it too. And what a call takes of the
processor at both ends, which other programs on the machine do not change much.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc

from node import wire
from node.mesh.identity import Identity, new_token, server_name
from scripts.bench import running

ASKED, ANSWERED = bytes(300), bytes(150)
WARM = 5  # rounds before it counts


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds: of a round, and of a processor for each call, at the client and at a server."""

    round: float
    client: float
    server: float


@dataclass(frozen=True, slots=True)
class _Server:
    id: str
    port: int
    pid: int


def _id(i: int) -> str:
    return f"floor{chr(97 + i // 26)}{chr(97 + i % 26)}aa"


async def _serve(token: str, node_id: str) -> None:
    async def answer(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield ANSWERED

    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    handlers = {"Poll": grpc.unary_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_secure_port("127.0.0.1:0", Identity(token, node_id).server_credentials())
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def _servers(token: str, count: int) -> Iterator[list[_Server]]:
    ids = [_id(i) for i in range(count)]
    run = [sys.executable, __file__, "--serve", token]
    processes = [subprocess.Popen([*run, id], cwd=running.ROOT, stdout=subprocess.PIPE) for id in ids]
    try:
        servers = []
        for id, process in zip(ids, processes, strict=True):
            assert process.stdout is not None
            servers.append(_Server(id, int(process.stdout.readline()), process.pid))  # each took a port that was free
        yield servers
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def _rounds(token: str, servers: list[_Server], rounds: int) -> Floor:
    me = Identity(token, _id(100))
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for s in servers:
            options = [*wire.CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", server_name(s.id))]
            channel = grpc.aio.secure_channel(f"dns:///127.0.0.1:{s.port}", me.channel_credentials(), options=options)
            await stack.enter_async_context(channel)
            await asyncio.wait_for(channel.channel_ready(), 60)
            calls.append(channel.unary_stream("/floor/Poll"))

        async def ask(method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]) -> None:
            assert [answer async for answer in method(ASKED, timeout=60)] == [ANSWERED]

        for _ in range(WARM):
            await asyncio.gather(*map(ask, calls))
        pids = [os.getpid(), *(s.pid for s in servers)]
        before, took = [running.cpu_ms(pid) for pid in pids], []
        for _ in range(rounds):
            started = time.perf_counter()
            await asyncio.gather(*map(ask, calls))
            took.append((time.perf_counter() - started) * 1e3)
        client, *of_servers = (running.cpu_ms(p) - was for p, was in zip(pids, before, strict=True))
        each = statistics.median(of_servers) / rounds
        return Floor(statistics.median(took), client / rounds / len(servers), each)


def floor(count: int, rounds: int) -> Floor:
    """What a round with so many servers takes."""
    token = new_token()
    with _servers(token, count) as servers:
        return asyncio.run(_rounds(token, servers, rounds))


def main() -> None:
    """Measure and print, or serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="2,8,32")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--serve", nargs=2, metavar=("TOKEN", "ID"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_serve(*args.serve))
        return
    counts = [int(n) for n in args.nodes.split(",")]
    rows = []
    for n in counts:
        found = floor(n, args.rounds)
        rows.append([n, *(f"{ms:.2f}" for ms in (found.round, found.round / n, found.client, found.server))])
    head = ["servers", "all asked, ms", "each, ms", "processor of the client a call, ms", "of the server, ms"]
    running.table([head, *rows])
    print(f"\n{running.machine()}")


if __name__ == "__main__":
    main()
