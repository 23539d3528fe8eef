"""The floor of a vote over the mesh: bare grpc.aio with the mesh's certificates, one server a process, no node at all.

    python scripts/bench/wire_floor.py [--nodes 2,8,32] [--rounds 60]

A round is a streaming call to every server at once, as Poll is, each answered with one message of a ballot's size; the
median of the rounds. What a vote takes beyond that is ours. `mesh.py` runs it too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc

from node import wire
from node.mesh.identity import Identity, new_token, server_name
from scripts.bench import running

ASKED, ANSWERED = bytes(300), bytes(150)


def _id(i: int) -> str:
    return f"floor{chr(97 + i // 26)}{chr(97 + i % 26)}aa"


async def _serve(token: str, node_id: str, port: int) -> None:
    async def answer(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield ANSWERED

    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    handlers = {"Poll": grpc.unary_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    server.add_secure_port(f"127.0.0.1:{port}", Identity(token, node_id).server_credentials())
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def _servers(token: str, count: int) -> Iterator[list[tuple[str, int]]]:
    places = [(_id(i), running.free_port()) for i in range(count)]
    run = [sys.executable, __file__, "--serve", token]
    processes = [subprocess.Popen([*run, id, str(port)], cwd=running.ROOT) for id, port in places]
    try:
        yield places
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def _rounds(token: str, places: list[tuple[str, int]], rounds: int) -> list[float]:
    me = Identity(token, _id(100))
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for id, port in places:
            options = [*wire.CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", server_name(id))]
            channel = grpc.aio.secure_channel(f"dns:///127.0.0.1:{port}", me.channel_credentials(), options=options)
            await stack.enter_async_context(channel)
            await asyncio.wait_for(channel.channel_ready(), 60)
            calls.append(channel.unary_stream("/floor/Poll"))

        async def ask(method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]) -> None:
            assert [answer async for answer in method(ASKED, timeout=60)] == [ANSWERED]

        took = []
        for _ in range(rounds + 5):
            started = time.perf_counter()
            await asyncio.gather(*map(ask, calls))
            took.append((time.perf_counter() - started) * 1e3)
        return took[5:]


def floor(count: int, rounds: int) -> float:
    """Milliseconds of a round with so many servers."""
    token = new_token()
    with _servers(token, count) as places:
        return statistics.median(asyncio.run(_rounds(token, places, rounds)))


def main() -> None:
    """Measure and print, or serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="2,8,32")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--serve", nargs=3, metavar=("TOKEN", "ID", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        token, node_id, port = args.serve
        asyncio.run(_serve(token, node_id, int(port)))
        return
    counts = [int(n) for n in args.nodes.split(",")]
    rows = [[n, f"{(ms := floor(n, args.rounds)):.1f}", f"{ms / n:.2f}"] for n in counts]
    running.table([["servers", "all asked, ms", "each, ms"], *rows])
    print(f"\n{running.machine()}")


if __name__ == "__main__":
    main()
