"""One user, one stream: tokens a second through Generate.Stream, and the time to the first token, against the floor.

    python scripts/bench/stream.py [--generate 128] [--rounds 3] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0; 512 prompt tokens that nobody has seen before, two threads,
f16 KV, flash attention. The floor is llama-batched-bench with the same numbers; rounds go A B A B.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.candidates import OVERHEAD, PROMPT, THREADS, text
from scripts.bench.make_model import model


def ours(node: running.Node, rng: random.Random, generate: int) -> tuple[float, float]:
    """Seconds to the first token, and decoded tokens a second after it."""
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=text(rng, PROMPT - OVERHEAD))],
        candidates=1,
        scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(max_tokens=generate, seed=rng.randrange(1 << 32)),
    )
    started = time.perf_counter()
    end = started
    for event in node.generate.Stream(generate_pb2.StreamRequest(request=request), timeout=600):
        if event.WhichOneof("event") == "candidate":
            end = time.perf_counter()
            tokens = event.candidate.tokens
    # Random weights seldom write whole characters, so the first token is taken from the node's own clock.
    first = event.done.timings.queue_ms / 1e3 + event.done.timings.prefill_ms / 1e3
    return first, (tokens - 1) / (end - started - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 32 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, generate = (1, 32) if args.quick else (args.rounds, args.generate)
    rng = random.Random(time.time_ns())
    path = model("q8_0")
    mine: list[tuple[float, float]] = []
    floor: list[tuple[float, float]] = []
    for _ in range(rounds):
        with running.node("--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", "1024") as node:
            ours(node, rng, 4)
            mine.append(ours(node, rng, generate))
        row = rivals.batched_bench(path, PROMPT, generate, [1], THREADS)[1]
        floor.append((row["t_pp"], row["speed_tg"]))
    running.table(
        [
            ["what", "first token or prefill, s", "tokens/s"],
            *([name, " ".join(f"{a:.2f}" for a, _ in rows), " ".join(f"{b:.1f}" for _, b in rows)]
              for name, rows in (("ours, through gRPC", mine), ("llama-batched-bench", floor))),
        ]
    )  # fmt: skip
    running.finish(
        {
            "decode_over_floor": statistics.median(a[1] / b[1] for a, b in zip(mine, floor, strict=True)),
            "first_token_extra_ms": statistics.median((a[0] - b[0]) * 1e3 for a, b in zip(mine, floor, strict=True)),
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
