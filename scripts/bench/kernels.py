"""What our kernels are worth: prompts and decode steps by batch size, on llama.cpp as it is and on ours.

    python scripts/bench/kernels.py [--type q8_0] [--shape 0.5b] [--rounds 3] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B (`--shape blocks`: one with rows of whole blocks of 256, so that K
types are what they are in larger models; `--shape experts`: a mixture of 64, of which a token uses eight), two threads,
f16 KV, flash attention, llama.cpp driven by hand in a process of its own each time; rounds go A B A B. Without context
a step is nearly all matrix products; what 512 and 2,048 tokens that the sequences share add to it is attention, and so
is what 256 tokens that each has for itself do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from scripts.bench import rivals, running
from scripts.bench.make_model import SHAPES, TYPES, model

THREADS = 2
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (0, 512, 2048)
PROMPT = 512
OWN, OWN_BATCHES = 256, (4, 8, 16)  # tokens that each sequence has for itself
CHILD = "--child"


def token(i: int) -> int:
    """One of many, as text has them: so each finds experts of its own."""
    return 300 + i * 7919 % 30_000


def measure(path: Path, steps: int) -> dict[str, float]:
    """Milliseconds: of a prompt, and of a step by context and batch, medians."""
    options = LlamaOptions(path, "kernels", "", sequences=max(BATCHES), context=max(CONTEXTS) + 64, threads=THREADS)
    backend = LlamaBackend(options)
    took: dict[str, float] = {}
    for context in CONTEXTS:
        for begin in range(0, context, PROMPT):
            rows = [Row(token(begin + i), begin + i, 0, i == PROMPT - 1) for i in range(PROMPT)]
            if not begin:
                backend.decode(rows)  # once to warm up
                backend.drop(0)
            started = time.perf_counter()
            backend.decode(rows)
            took["prompt"] = min(took.get("prompt", 1e9), (time.perf_counter() - started) * 1e3)
        for batch in BATCHES:
            for sequence in range(1, batch):
                backend.fork(0, sequence, context)
            times = []
            for step in range(steps):
                rows = [Row(token(step * batch + each), context + step, each, True) for each in range(batch)]
                started = time.perf_counter()
                backend.decode(rows)
                times.append((time.perf_counter() - started) * 1e3)
            took[f"{context}/{batch}"] = statistics.median(times)
            for sequence in range(1, batch):
                backend.drop(sequence)
            if not backend.truncate(0, context):
                backend.drop(0)
        backend.drop(0)
    for sequence in range(max(OWN_BATCHES)):
        backend.decode([Row(token(sequence * OWN + i), i, sequence, i == OWN - 1) for i in range(OWN)])
    for batch in OWN_BATCHES:
        times = []
        for step in range(steps):
            rows = [Row(token(step * batch + each), OWN + step, each, True) for each in range(batch)]
            started = time.perf_counter()
            backend.decode(rows)
            times.append((time.perf_counter() - started) * 1e3)
        for sequence in range(batch):
            backend.truncate(sequence, OWN)
        took[f"{OWN} own/{batch}"] = statistics.median(times)
    backend.close()
    return took


def child(path: Path, steps: int, library: Path | None) -> dict[str, float]:
    env = {**os.environ, **({"LLAMA_CPP_LIB_PATH": str(library)} if library else {})}
    command = [sys.executable, "-m", "scripts.bench.kernels", CHILD, str(path), str(steps)]
    out = subprocess.run(
        command, cwd=running.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    took: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return took


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="q8_0", choices=TYPES)
    parser.add_argument("--shape", default="0.5b", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of few steps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, steps = (1, 5) if args.quick else (args.rounds, 15)
    path, stock = model(args.type, args.shape), rivals.build()
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(child(path, steps, stock))
        ours.append(child(path, steps, None))
    rows: list[list[object]] = [["what", "llama.cpp, ms", "ours, ms", "times as fast"]]
    speedups: dict[str, float] = {}
    for name in theirs[0]:
        a, b = (statistics.median(each[name] for each in runs) for runs in (theirs, ours))
        speedups[name] = statistics.median(x[name] / y[name] for x, y in zip(theirs, ours, strict=True))
        context, _, batch = name.partition("/")
        tokens = f"{OWN} tokens of each" if "own" in context else f"{context} shared tokens"
        label = f"a step of {batch} after {tokens}" if batch else f"a prompt of {PROMPT} tokens"
        rows.append([label, f"{a:.1f}", f"{b:.1f}", f"{speedups[name]:.2f}"])
    running.table(rows)
    running.finish({"type": args.type, "shape": args.shape, "speedups": speedups}, as_json=args.json)


if __name__ == "__main__":
    main()
