"""What replication of KV costs: bytes of a turn, codecs, taking a topic over from a peer, and the sender's own speed.

    python scripts/bench/sync.py [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0 weights, flash attention; nodes are real processes on loopback
with mutual TLS. Four parts:

wire      a chat of 20 turns on one node, another node keeps it: bytes of KV sent by the KV of the new tokens, without
          compression; beside it what sending the whole cache each turn would have cost
codec     2,048 tokens exported, cut into blocks, each packed and checksummed, checked and put together, and restored,
          by the processor time of one thread; and how much smaller they become, here and with the bundled model's
          real weights
takeover  an engine takes 2,048 tokens over from a peer in another process (pull, checks, restore, and one token more
          with the probe), against computing them there, and against computing them with llama.cpp's own kernels; the
          floor is bare gRPC that sends as many bytes on the same connection
sender    four chats in turn on a node whose KV is replicated as it writes in the next one, and on one that replicates
          nothing; the two in turn, each on the same core, the receiver on another; several starts, as processes differ
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc
import numpy as np

from node import wire
from node.api.kvsync import KVSyncServicer
from node.api.seam import seam
from node.core import blob, block, snapshot
from node.core.block import Codec
from node.core.log import Entry
from node.core.slots import Speeds
from node.core.snapshot import Ours
from node.engine.backend import Row
from node.engine.engine import Engine
from node.engine.job import Prefilled, job
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.mesh.identity import Identity, new_token
from node.mesh.peer import Peer
from node.models.resolve import BUNDLED
from node.replicator import Options, Replicator
from node.store import Blocks, Store
from node.types import Message, SamplingParams, Version
from node.v1 import generate_pb2, kvsync_pb2, kvsync_pb2_grpc, types_pb2
from scripts.bench import rivals, running
from scripts.bench.make_model import model
from scripts.bench.traces import LETTERS

TOKENS = 2048
NAMES = "a" * 16, "b" * 16
CHATS = 4  # in turn, so that the KV of one is replicated while the next one's answer is written
TOKEN_BYTES = 12_288  # of KV, in f16
BLOCK_BYTES = 64 * TOKEN_BYTES
REST_S = 1.5  # for what is replicated last, which must not slow the other node


def text(size: int, seed: int) -> str:
    """So many tokens of the random model's vocabulary."""
    return "".join(LETTERS[i] for i in np.random.default_rng(seed).integers(0, len(LETTERS), size))


# ---- wire -----------------------------------------------------------------------------------------------------------


def say(node: running.Node, topic: str, said: str, tokens: int, *, append: bool) -> generate_pb2.GenerateResponse:
    request = generate_pb2.GenerateRequest(
        topic=topic, messages=[types_pb2.Message(role="user", content=said)], append=append, candidates=1,
        scope=generate_pb2.SCOPE_LOCAL, params=types_pb2.SamplingParams(max_tokens=tokens, seed=1, ignore_eos=True),
    )  # fmt: skip
    return node.generate.Generate(request, timeout=600)


def held(node: running.Node, topic: str) -> int:
    """Tokens of a topic's snapshot on a node's disk."""
    try:
        stub = kvsync_pb2_grpc.KVSyncStub(node.channel)
        return int(stub.Show(kvsync_pb2.ShowRequest(topic=topic), timeout=10).snapshot_tokens)
    except grpc.RpcError:
        return 0


def until_held(node: running.Node, topic: str, tokens: int) -> None:
    end = time.monotonic() + 120
    while held(node, topic) < tokens:
        if time.monotonic() > end:
            sys.exit(f"{tokens} tokens of {topic} did not arrive: {held(node, topic)} did")
        time.sleep(0.02)


def sent(port: int) -> float:
    """Bytes of snapshots that a node has sent."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in page.splitlines() if line.startswith("conclave_sync_bytes_total")]
    return sum(float(line.split()[-1]) for line in lines if 'direction="sent"' in line and 'reason="snapshot"' in line)


def met(*nodes: running.Node) -> None:
    end = time.monotonic() + 60
    while any(sum(n.state == "alive" for n in node.status().nodes) < len(nodes) for node in nodes):
        if time.monotonic() > end:
            sys.exit("the nodes did not meet")
        time.sleep(0.05)


def part_wire(path: Path, turns: int, first: int, token_bytes: int) -> dict[str, float]:
    flags = ["--model", str(path), "--ctx", "8192", "--kv-memory", "2048", "--sync-codec", "none"]
    http = running.free_port()
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as home:
        where = Path(home)
        with (
            running.node(*flags, "--http-port", str(http), home=where) as one,
            running.node(*flags, home=where) as two,
        ):
            met(one, two)
            new = whole = 0
            before, start = 0, sent(http)
            for turn in range(turns):
                say(one, "chat", text(first if turn == 0 else 100, turn), 1, append=turn > 0)
                end = time.monotonic() + 60
                while held(one, "chat") == before and time.monotonic() < end:
                    time.sleep(0.02)
                tokens = held(one, "chat")
                until_held(two, "chat", tokens)
                new += (tokens - before) * token_bytes
                whole += tokens * token_bytes
                before = tokens
            moved = sent(http) - start
    running.table([
        ["turns", "tokens at the end", "new KV, MB", "sent, MB", "ratio", "whole cache each turn, MB", "ratio"],
        [turns, before, f"{new / 1e6:.2f}", f"{moved / 1e6:.2f}", f"{moved / new:.4f}", f"{whole / 1e6:.1f}",
         f"{whole / new:.1f}"],
    ])  # fmt: skip
    return {"wire_over_new_kv": moved / new, "broadcast_over_new_kv": whole / new}


# ---- codec ----------------------------------------------------------------------------------------------------------


def backend_of(path: Path, kv_type: str, context: int) -> LlamaBackend:
    return LlamaBackend(LlamaOptions(path, "m", "fp", sequences=4, context=context, kv_type=kv_type))


def fill(backend: LlamaBackend, tokens: Sequence[int]) -> None:
    for start in range(0, len(tokens), backend.info.batch):
        end = min(start + backend.info.batch, len(tokens))
        backend.decode([Row(tokens[i], i, 0, i == len(tokens) - 1) for i in range(start, end)])


def tokens_of(backend: LlamaBackend, count: int, *, is_demo: bool) -> list[int]:
    if not is_demo:
        return np.random.default_rng(1).integers(0, 250, count).tolist()
    said = " ".join(f"A box holds {i} pens. Ann buys {i + 2} boxes and gives away {3 * i} pens." for i in range(200))
    return backend.tokenize(backend.render([Message("user", said)], []))[:count]


def part_codec(path: Path, tokens: int, rounds: int) -> dict[str, float]:
    rows: list[list[object]] = [
        ["KV", "codec", "MB", "ratio", "export", "encode", "check and put together", "restore", "all, MB/s a core"]
    ]
    figures: dict[str, float] = {}
    for name, kv_type in (("random", "f16"), ("random", "q8_0"), ("bundled", "f16"), ("bundled", "q8_0")):
        is_demo = name == "bundled"
        backend = backend_of(BUNDLED if is_demo else path, kv_type, 2048 if is_demo else 4096)
        ids = tokens_of(backend, min(tokens, 2000) if is_demo else tokens, is_demo=is_demo)
        fill(backend, ids)
        for codec in Codec:
            took: dict[str, list[float]] = {k: [] for k in ("export", "encode", "assemble", "restore", "all")}
            for _ in range(rounds):
                ratio, seconds, size = once(backend, ids, codec)
                for key, value in seconds.items():
                    took[key].append(size / 1e6 / value)
                took["all"].append(size / 1e6 / sum(seconds.values()))
            speeds = {k: statistics.median(v) for k, v in took.items()}
            rows.append(
                [f"{name} {kv_type}", codec, f"{size / 1e6:.1f}", f"{ratio:.3f}"]
                + [f"{speeds[k]:,.0f}" for k in ("export", "encode", "assemble", "restore", "all")]
            )
            if (name, kv_type, codec) == ("random", "f16", Codec.NONE):
                figures["codec_mb_per_s"] = speeds["all"]
        backend.close()
    running.table(rows)
    return figures


def once(backend: LlamaBackend, ids: list[int], codec: Codec) -> tuple[float, dict[str, float], int]:
    """A state through the codec once: plain bytes by packed ones, seconds of each step (of the processor's time: all is
    done by one thread), plain bytes."""
    marks = [time.thread_time()]
    state = backend.export(0)
    marks.append(time.thread_time())
    layout, rows = blob.read(state, backend.info.window)
    fits = Ours("fp", layout, backend.info.vocabulary, backend.info.context)
    head = snapshot.header("t", Version(0, 1, "n"), ids, fits)
    head, made = snapshot.encode(head, {}, rows, codec, block.shuffle_width(layout.parts[0]))
    packed = head.pack()
    marks.append(time.thread_time())
    put = snapshot.assemble(snapshot.check(packed, fits), fits, made.get)
    marks.append(time.thread_time())
    assert backend.restore(1, put)
    marks.append(time.thread_time())
    backend.drop(1)
    assert np.array_equal(put, state)
    names = ("export", "encode", "assemble", "restore")
    seconds = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
    return head.size / sum(map(len, made.values())), seconds, state.nbytes


# ---- takeover -------------------------------------------------------------------------------------------------------


class Mesh:
    """One peer, or none."""

    def __init__(self) -> None:
        self.all: list[Peer] = []

    def peers(self) -> list[Peer]:
        return self.all


async def prefilled(engine: Engine, tokens: Sequence[int], name: str, topic: str) -> tuple[float, int]:
    """Seconds until a prompt is computed, and how much of it was held."""
    started = time.perf_counter()
    async for event in engine.run(job(name, tokens, [1], SamplingParams(max_tokens=1), 1, topic=topic)):
        if isinstance(event, Prefilled):
            took, cached = time.perf_counter() - started, event.cached
    engine.commit(name, 1)
    return took, cached


def ids_of(tokens: int, turn: int) -> list[int]:
    """Another conversation each time."""
    ids: list[int] = np.random.default_rng(1).integers(0, 250, tokens).tolist()
    return [*ids[turn:], *ids[:turn]]


def entry(node: str) -> Entry:
    return Entry(Version(0, 1, node), messages=(Message("user", "x"), Message("assistant", "y")))


@dataclass
class Keeper:
    """An engine with its replicator, as a node has them."""

    engine: Engine
    replicator: Replicator
    store: Store
    mesh: Mesh

    @classmethod
    async def start(cls, path: Path, home: Path, name: str) -> Keeper:
        engine = Engine(lambda: backend_of(path, "f16", 4096), node=name, memory=1 << 30)
        await engine.start()
        store, mesh, blocks = Store(home / name / "topics"), Mesh(), Blocks(home / name / "kv", 4 << 30)
        return cls(engine, Replicator(name, engine, mesh, store, blocks, Options(replicas=0)), store, mesh)

    async def stop(self) -> None:
        await self.replicator.stop()
        await self.engine.close()


async def bare(request: bytes, context: object) -> AsyncIterator[bytes]:
    """So many bytes, in messages as large as blocks."""
    data = os.urandom(BLOCK_BYTES)
    for _ in range(int(request) // BLOCK_BYTES):
        yield data


async def floor_of(peer: Peer, size: int) -> float:
    """Seconds until so many bytes have come by gRPC alone."""
    started = time.perf_counter()
    async for _ in peer._bulky().unary_stream("/floor/Send")(str(size).encode()):
        pass
    return time.perf_counter() - started


def peer_process(path: Path, home: Path, token: str, tokens: int, pipe: Connection) -> None:
    """The node that is taken over from, in a process of its own: computes a topic when it is told, says how long it
    took, and serves its KV."""

    async def main() -> None:
        name = NAMES[0]
        keeper = await Keeper.start(path, home, name)
        server = grpc.aio.server(options=wire.SERVER_OPTIONS)
        kvsync_pb2_grpc.add_KVSyncServicer_to_server(KVSyncServicer(keeper.replicator, is_mesh=True), seam(server))
        floor = grpc.method_handlers_generic_handler("floor", {"Send": grpc.unary_stream_rpc_method_handler(bare)})
        server.add_generic_rpc_handlers((floor,))
        port = server.add_secure_port("127.0.0.1:0", Identity(token, name).server_credentials())
        await server.start()
        pipe.send((port, keeper.engine.info.fingerprint))
        while (turn := await asyncio.to_thread(pipe.recv)) is not None:
            await keeper.store.add(f"t{turn}", entry(name))
            seconds, _ = await prefilled(keeper.engine, ids_of(tokens, turn), f"c{turn}", f"t{turn}")
            await keeper.replicator.snapshots.take(f"t{turn}")  # as after a turn
            pipe.send(seconds)
        await server.stop(None)
        await keeper.stop()

    asyncio.run(main())


async def takeover(path: Path, tokens: int, rounds: int) -> dict[str, float]:
    token = new_token()
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as home:
        process = processes.Process(target=peer_process, args=(path, Path(home), token, tokens, theirs))
        process.start()
        port, fingerprint = await asyncio.to_thread(ours.recv)
        keeper = await Keeper.start(path, Path(home), NAMES[1])
        peer = Peer(Identity(token, NAMES[1]), f"127.0.0.1:{port}", NAMES[0])
        peer.info = type(peer.info)(NAMES[0], "", fingerprint=fingerprint)
        keeper.mesh.all.append(peer)
        cold, warm, pulled, floor = [], [], [], []
        for turn in range(rounds):
            topic = f"t{turn}"
            await keeper.store.add(topic, entry(NAMES[0]))
            ours.send(turn)
            seconds = await asyncio.to_thread(ours.recv)
            cold.append(seconds)
            asked = [*ids_of(tokens, turn), 5]
            keeper.engine._scheduler.slots.speeds = Speeds(prefill_s=seconds / tokens)
            await asyncio.sleep(0.5)
            started = time.perf_counter()
            await keeper.replicator.warm(topic, asked)
            pulled.append(time.perf_counter() - started)
            seconds, cached = await prefilled(keeper.engine, asked, f"w{turn}", topic)
            if cached != tokens:
                sys.exit(f"{cached} of {tokens} tokens were taken over")
            warm.append(pulled[-1] + seconds)
            floor += [await floor_of(peer, tokens * TOKEN_BYTES) for _ in range(3)]
            await keeper.engine.forget(topic)
        ours.send(None)
        await peer.close()
        await keeper.stop()
        await asyncio.to_thread(process.join)
    stock = [prefilled_by_stock(path, tokens) for _ in range(rounds)]
    speedups = [statistics.median(c / w for c, w in zip(all_, warm, strict=True)) for all_ in (cold, stock)]
    middle = [statistics.median(all_) for all_ in (cold, stock, warm, pulled, floor)]
    running.table([
        ["tokens", "computing them, s", "with llama.cpp's own kernels, s", "taking over and one token, s",
         "of it pull and checks, s", "bare gRPC, s", "quicker than computing", "than with llama.cpp's kernels"],
        [tokens, f"{middle[0]:.2f}", f"{middle[1]:.2f}", f"{middle[2]:.3f}", f"{middle[3]:.3f}", f"{middle[4]:.3f}",
         *(f"{s:.0f}x" for s in speedups)],
    ])  # fmt: skip
    return {
        "restore_speedup_over_prefill": speedups[0],
        "restore_speedup_over_stock_prefill": speedups[1],
        "pull_over_bare_grpc": middle[3] / middle[4],
    }


def prefilled_by_stock(path: Path, tokens: int) -> float:
    """Seconds that llama.cpp as it is takes for a prompt, in a process of its own."""
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(rivals.build())}
    command = [sys.executable, "-m", "scripts.bench.sync", "--prefill", str(path), str(tokens)]
    out = subprocess.run(
        command, cwd=running.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return float(out.stdout.splitlines()[-1])


def prefill(path: Path, tokens: int) -> float:
    """Seconds for a prompt, without anything around it; what is warm in a node is warm here."""
    backend = backend_of(path, "f16", 4096)
    ids = ids_of(tokens, 0)
    fill(backend, ids[: backend.info.batch])
    backend.drop(0)
    started = time.perf_counter()
    fill(backend, ids)
    return time.perf_counter() - started


# ---- sender ---------------------------------------------------------------------------------------------------------


def part_sender(path: Path, starts: int, rounds: int, answer: int) -> dict[str, float]:
    took: list[tuple[float, float]] = []
    kept = 0
    for start in range(starts):  # two processes of the same program differ by some per cent, whatever they do
        seconds, kept = senders(path, start, rounds, answer)
        took.append((statistics.median(seconds["on"]), statistics.median(seconds["off"])))
    ratio = statistics.median(on / off for on, off in took)
    running.table([
        ["starts", "turns", "replicated, s a turn", "not, s a turn", "slowed", "by start", "tokens replicated"],
        [starts, starts * rounds * CHATS, f"{statistics.median(on for on, _ in took):.3f}",
         f"{statistics.median(off for _, off in took):.3f}", f"{100 * (ratio - 1):+.1f} %",
         " ".join(f"{100 * (on / off - 1):+.1f}" for on, off in took), kept],
    ])  # fmt: skip
    return {"sender_slowdown": ratio - 1}


def senders(path: Path, start: int, rounds: int, answer: int) -> tuple[dict[str, list[float]], int]:
    """Seconds a turn of a node that replicates and of one that does not, and tokens that the receiver holds."""
    flags = ["--model", str(path), "--ctx", "8192", "--threads", "1", "--draft", "0"]
    kinds = {"on": ["--replicas", "1"], "off": ["--replicas", "0", "--disk-budget", "0"]}
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as home, contextlib.ExitStack() as stack:
        where = Path(home)
        programs = {
            name: stack.enter_context(running.node(*flags, *kinds[name], home=where, cpus=[0]))
            for name in (("on", "off") if start % 2 else ("off", "on"))
        }
        receiver = stack.enter_context(running.node(*flags, "--replicas", "0", home=where, cpus=[1]))
        met(*programs.values(), receiver)
        took: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(rounds + 1):
            for name in ("on", "off") if turn % 2 else ("off", "on"):
                started = time.perf_counter()
                for topic in range(CHATS):
                    say(programs[name], f"{name} {topic}", text(100, turn), answer, append=turn > 0)
                if turn:
                    took[name].append((time.perf_counter() - started) / CHATS)
                time.sleep(REST_S)
        return took, sum(held(receiver, f"on {topic}") for topic in range(CHATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["wire", "codec", "takeover", "sender"], help="one of them only")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, turns and rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prefill", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prefill:
        print(prefill(Path(args.prefill[0]), int(args.prefill[1])))
        return
    path, quick = model("q8_0"), args.quick
    figures: dict[str, object] = {}
    parts = {
        "wire": lambda: part_wire(path, 5 if quick else 20, 128 if quick else 512, TOKEN_BYTES),
        "codec": lambda: part_codec(path, 256 if quick else TOKENS, 2 if quick else 5),
        "takeover": lambda: asyncio.run(takeover(path, 512 if quick else TOKENS, 1 if quick else 3)),
        "sender": lambda: part_sender(path, 1 if quick else 4, 1 if quick else 3, 8 if quick else 32),
    }
    for name, part in parts.items():
        if args.part in (None, name):
            print(f"\n## {name}\n", flush=True)
            figures |= part()
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
