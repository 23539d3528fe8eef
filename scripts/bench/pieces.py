"""What a piece of a prompt adds to the step of one that writes, by its rows and by tokens before it.

    python scripts/bench/pieces.py [--stock] [--before 0,1000,4000] [--steps 5] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0, two threads, f16 KV, flash attention, llama.cpp by hand.
Milliseconds of processor time of the decode thread, the least of some steps, so that what else the machine does says
little. `--stock` takes llama.cpp's own kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from scripts.bench import rivals, running
from scripts.bench.make_model import model

THREADS = 2
ROWS = (0, 1, 2, 4, 8, 16, 32)
OWN = 300  # tokens of the one that writes
CHUNK = 512
CHILD = "--child"


def measure(path: Path, befores: list[int], steps: int) -> dict[str, float]:
    """Milliseconds by tokens before the piece and its rows."""
    backend = LlamaBackend(
        LlamaOptions(path, "pieces", "", sequences=2, context=max(*befores, OWN) + max(ROWS) + 2, threads=THREADS)
    )
    backend.decode([Row(100 + i % 20, i, 0, wants_logits=False) for i in range(OWN)])
    took: dict[str, float] = {}
    held = 0
    for before in befores:
        while held < before:
            rows = min(CHUNK, before - held)
            backend.decode([Row(100 + i % 20, held + i, 1, wants_logits=False) for i in range(rows)])
            held += rows
        for rows in ROWS:
            least = float("inf")
            for _ in range(steps):
                piece = [Row(100 + i, held + i, 1, wants_logits=False) for i in range(rows)]
                started = time.thread_time()
                backend.decode([Row(101, OWN, 0, wants_logits=True), *piece])
                least = min(least, time.thread_time() - started)
                backend.truncate(0, OWN)
                if held:
                    backend.truncate(1, held)
                else:
                    backend.drop(1)
            took[f"{before}/{rows}"] = least * 1e3
    backend.close()
    return took


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(measure(Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="llama.cpp's own kernels")
    parser.add_argument("--before", default="0,1000,4000", help="tokens before the piece, with commas, ascending")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 tokens before it, three steps each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    befores = [int(each) for each in ("0,1000" if args.quick else args.before).split(",")]
    steps = 3 if args.quick else args.steps
    running.expect(10 + max(befores) * (0.007 if args.stock else 0.004) + len(befores) * steps * len(ROWS) * 0.1)
    env = {**os.environ, **({"LLAMA_CPP_LIB_PATH": str(rivals.build())} if args.stock else {})}
    command = [sys.executable, "-m", "scripts.bench.pieces", CHILD, str(model("q8_0")), json.dumps(befores), str(steps)]
    out = subprocess.run(
        command, cwd=running.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    took: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    rows: list[list[object]] = [["tokens before", *(f"{rows} rows" if rows else "alone" for rows in ROWS)]]
    for before in befores:
        rows.append([f"{before:,}", *(f"{took[f'{before}/{rows}']:.0f}" for rows in ROWS)])
    running.table(rows)
    last = befores[-1]
    alone = took[f"{last}/0"]
    running.finish(
        {
            "kernels": "llama.cpp" if args.stock else "ours",
            "step_with_eight_rows_over_without": took[f"{last}/8"] / alone,
            "step_with_two_rows_over_without": took[f"{last}/2"] / alone,
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
