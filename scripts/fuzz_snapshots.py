"""Mutated snapshots, given to a node's checks and to llama.cpp: no crash, and nothing wrong is taken for right.

    python scripts/fuzz_snapshots.py [--count 100000] [--workers 2] [--seed 1] [--json]

Real states of the bundled model and of a tiny one with a sliding window, f16 and q8_0, are made into headers and
blocks. Each mutation changes one of them: bits, lengths, blocks swapped, repeated or left out, sizes that lie, bombs,
tokens, fingerprints, cuts, versions; one in four has other rows with checksums put right, every second of these by
somebody who has the mesh's secret, so that it comes further. What passes the checks is restored into a real context in
the worker's process, and must be the state that was sent, byte for byte. A lie of who has the secret must at least be
safe: the probe says whether it finds it, and how far off the next token's logits are shows whether it matters. Each
worker is a process, so a crash in native code is seen as what it is.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgpack
import numpy as np

from node.core import blob, block, snapshot
from node.core.block import Codec
from node.core.snapshot import Ours
from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.errors import BackendError, CorruptSnapshot, IncompatibleSnapshot
from node.models.resolve import BUNDLED
from node.types import Version
from scripts.bench.make_model import TINY, Shape, write

Blocks = dict[bytes, bytes]
SECRET, GUESSED = b"the mesh's own  ", block.NO_SECRET
# Logits that are so far from the right ones, by their length, are taken to differ by rounding; those of a right state,
# computed in a batch of two and alone, must.
ROUNDING = 0.01


@dataclass
class Subject:
    """A real snapshot, and the model that made it."""

    backend: LlamaBackend
    ours: Ours
    tokens: list[int]
    state: Any
    head: bytes
    blocks: Blocks
    logits: Any  # after one token more


def subject(path: Path, kv_type: str, seed: int) -> Subject:
    backend = LlamaBackend(LlamaOptions(path, "m", "fp", sequences=2, context=512, threads=1, kv_type=kv_type))
    tokens = np.random.default_rng(seed).integers(1, 250, 200).tolist()
    backend.decode([Row(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
    state = backend.export(0)
    layout, rows = blob.read(state, backend.info.window)
    ours = Ours("fp", layout, backend.info.vocabulary, backend.info.context, SECRET)
    head = snapshot.header("t", Version(0, 1, "n"), tokens, ours)
    codec = random.Random(seed).choice(list(Codec))
    head, made = snapshot.encode(head, {}, rows, codec, block.shuffle_width(layout.parts[0]), SECRET)
    backend.decode([Row(5, len(tokens), 0, True)])
    expected = backend._logits(0).values.copy()
    backend.drop(0)
    return Subject(backend, ours, tokens, state, head.pack(), made, expected)


# ---- mutations: (rng, header bytes, blocks) -> the same, changed -----------------------------------------------------


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def grow(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice([1, 4, 100])) + data[at:]


def splice(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    c = rng.randrange(len(data))
    return data[:c] + data[a:b] + data[c + b - a :]


BYTES: list[Callable[[random.Random, bytes], bytes]] = [flip, flip, cut, grow, splice]
NUMBERS = [0, 1, 63, 64, 65, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, -1]


def field(rng: random.Random, head: bytes) -> bytes:
    """One field of the header says something else."""
    f = msgpack.unpackb(head)
    kind = rng.randrange(9)
    if kind == 0:
        f["fingerprint"] = rng.choice(["", "FP", "fp ", "other"])
    elif kind == 1:
        f["layout"] = flip(rng, f["layout"])
    elif kind == 2:
        ids = np.frombuffer(f["tokens"], "<u4").copy()
        ids[rng.randrange(len(ids))] = rng.choice([0, 5, 299, 300, 1 << 20, (1 << 32) - 1])
        f["tokens"] = ids.tobytes()
    elif kind == 3:
        f["tokens"] = f["tokens"] * rng.choice([0, 2, 3, 5000])
    elif kind == 4:
        f["lengths"] = rng.choice([flip(rng, f["lengths"]), cut(rng, f["lengths"]), f["lengths"] + b"\1", b""])
    elif kind == 5 and f["blocks"]:
        f["blocks"][rng.randrange(len(f["blocks"]))][1] = abs(rng.choice(NUMBERS))
    elif kind == 6:
        rng.shuffle(f["blocks"])
    elif kind == 7:
        f["blocks"] = f["blocks"] * 2 if rng.random() < 0.5 else f["blocks"][:-1]
    else:
        f["version"] = rng.choice([[-1, 1, "n"], [1 << 63, 1, "n"], [0, 1], ["0", 1, "n"], [0, 1, "n" * 300]])
    return bytes(msgpack.packb(f))


def mutate(rng: random.Random, head: bytes, blocks: Blocks) -> tuple[bytes, Blocks, bytes]:
    """A changed snapshot, and the secret with which its checksums were put right after its rows were changed; empty:
    they were not."""
    blocks = dict(blocks)
    keys = list(blocks)
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(BYTES)(rng, head), blocks, b""
    if kind < 0.45:
        return field(rng, head), blocks, b""
    key = rng.choice(keys)
    if kind < 0.6:
        blocks[key] = rng.choice(BYTES)(rng, blocks[key])
    elif kind < 0.66:
        other = rng.choice(keys)
        blocks[key], blocks[other] = blocks[other], blocks[key]
    elif kind < 0.70:
        del blocks[key]
    elif kind < 0.75:  # a bomb
        bomb = block.encode(key, np.zeros(4 << 20, np.uint8), rng.choice([Codec.LZ4, Codec.ZSTD]), 1, SECRET)
        size = rng.choice([4 << 20, 64, 1 << 30])
        blocks[key] = block._HEAD.pack(block.MAGIC, bomb[4], 1, 0, size, bomb[12:28]) + bomb[block.HEAD_BYTES :]
    else:
        secret = rng.choice([SECRET, GUESSED])
        return *forge(rng, head, blocks, key, secret), secret
    return head, blocks, b""


def forge(rng: random.Random, head: bytes, blocks: Blocks, key: bytes, secret: bytes) -> tuple[bytes, Blocks]:
    """Other rows with checksums put right: with the mesh's secret as a peer could who has the token, with another as
    anybody could."""
    f = msgpack.unpackb(head)
    size = next(size for k, size, _ in f["blocks"] if k == key)
    rows = block.decode(key, blocks[key], size, SECRET).copy()
    kind = rng.randrange(5)
    if kind == 0:
        rows[:] = np.frombuffer(rng.randbytes(size), np.uint8)
    elif kind == 1:
        rows[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        rows[:] = 0
    elif kind == 3:
        rows[:] = np.roll(rows, rng.randrange(size))
    else:
        at = rng.randrange(size - 1) & ~1
        rows[at : at + 2] = np.frombuffer(rng.choice([b"\x00\x7c", b"\x01\x7e", b"\xff\xff"]), np.uint8)
    blocks[key] = block.encode(key, rows, secret=secret)
    for entry in f["blocks"]:
        if entry[0] == key:
            entry[2] = block.digest_of(blocks[key])
    return bytes(msgpack.packb(f)), blocks


# ---- one worker ------------------------------------------------------------------------------------------------------


def attempt(s: Subject, head: bytes, blocks: Blocks, secret: bytes) -> str:
    """What became of one mutation, in a word. Raises AssertionError if something wrong was taken for right."""
    try:
        checked = snapshot.check(head, s.ours)
        for each in checked.blocks:
            if each.key in blocks:
                snapshot.check_block(each, blocks[each.key], s.ours, digest=each.digest)
        state = snapshot.assemble(checked, s.ours, blocks.get)
    except (CorruptSnapshot, IncompatibleSnapshot) as e:
        return f"{e.reason}, checksums put right without the secret" if secret == GUESSED else e.reason
    same = state.nbytes == s.state.nbytes and bool((state == s.state).all())
    assert same or secret == SECRET, "a changed state passed"
    tokens = list(checked.tokens)
    assert tokens == s.tokens, "other tokens passed"
    assert s.backend.restore(1, state), "llama.cpp refused a state that had passed"
    was = s.backend.reopen(1, len(tokens))
    assert was is not None
    s.backend.decode([Row(tokens[-1], len(tokens) - 1, 1, False), Row(5, len(tokens), 1, True)])
    refuted = s.backend.refutes(1, tokens, was)
    try:
        off = float(np.linalg.norm(s.backend._logits(1).values - s.logits) / np.linalg.norm(s.logits))
    except BackendError:  # no numbers: a request is told so
        off = float("inf")
    s.backend.drop(1)
    if same:
        assert not refuted, "a right state was refuted"
        assert off < ROUNDING, f"the logits of a right state are {off} off"
        return "unchanged"
    if refuted:
        return "a lie with the secret, refuted by the probe"
    return f"a lie with the secret, taken, {'within rounding' if off < ROUNDING else 'next logits differ'}"


def work(count: int, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        window = Path(folder) / "window.gguf"
        write(window, Shape(**{**TINY.__dict__, "window": 64}))
        subjects = [subject(p, t, seed + i) for i, (p, t) in enumerate(
            [(BUNDLED, "f16"), (BUNDLED, "q8_0"), (window, "f16"), (window, "q8_0")]
        )]  # fmt: skip
        found: Counter[str] = Counter()
        for _ in range(count):
            s = rng.choice(subjects)
            found[attempt(s, *mutate(rng, s.head, s.blocks))] += 1
        for s in subjects:  # after all of it, a sound snapshot is still taken and a context still whole
            assert attempt(s, s.head, s.blocks, b"") == "unchanged"
            s.backend.close()
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.count, args.work)
        return
    started = time.monotonic()
    share = -(-args.count // args.workers)
    command = [sys.executable, str(Path(__file__).resolve()), "--count", str(share), "--work"]
    running = [
        subprocess.Popen(
            [*command, str(args.seed * 1000 + i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(args.workers)
    ]
    found: Counter[str] = Counter()
    failed = []
    for process in running:
        out, err = process.communicate()
        if process.returncode != 0:
            failed.append(f"a worker ended with {process.returncode}: {err[-2000:]}")
        else:
            found.update(json.loads(out.splitlines()[-1]))
    for reason, n in found.most_common():
        print(f"{n:8} {reason}")
    print(
        f"{found.total():8} mutations, {time.monotonic() - started:.0f} s, "
        f"{len(failed)} of {args.workers} workers failed"
    )
    if args.json:
        print(json.dumps({"mutations": found.total(), "failed": len(failed), **found}))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
