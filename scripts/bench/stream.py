"""One user, one stream: tokens a second through Generate.Stream, and the time to the first token, against the floor.

    python scripts/bench/stream.py [--generate 128] [--rounds 3] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0; 512 prompt tokens that nobody has seen before, two threads,
f16 KV, flash attention. The floor is llama-batched-bench with the same numbers; rounds go A B A B.

The first token is timed at the client, from before the call to the first text; beyond the time in which the node
computed the prompt, that is what gRPC, the template, the tokenizer, the queue, sampling and the event loop take.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.candidates import OVERHEAD, PROMPT, THREADS, text
from scripts.bench.make_model import LETTERS, model


def ask(rng: random.Random, generate: int, **params: object) -> generate_pb2.StreamRequest:
    sampling = types_pb2.SamplingParams(
        max_tokens=generate,
        seed=rng.randrange(1 << 32),
        ignore_eos=True,
        **params,  # type: ignore[arg-type]
    )
    message = types_pb2.Message(role="user", content=text(rng, PROMPT - OVERHEAD))
    request = generate_pb2.GenerateRequest(
        messages=[message], candidates=1, scope=generate_pb2.SCOPE_LOCAL, params=sampling
    )
    return generate_pb2.StreamRequest(request=request)


def speed(node: running.Node, rng: random.Random, generate: int) -> float:
    """Decoded tokens a second."""
    started = end = time.perf_counter()
    for event in node.generate.Stream(ask(rng, generate), timeout=600):
        if event.WhichOneof("event") == "candidate":
            end = time.perf_counter()
            assert event.candidate.tokens == generate
    # Random weights seldom write whole characters, so when the first token came is taken from the node's own clock.
    timings = event.done.timings
    return (generate - 1) / (end - started - (timings.queue_ms + timings.prefill_ms) / 1e3)


def first_token(node: running.Node, rng: random.Random) -> tuple[float, float]:
    """Seconds until the client has the first text, and those of computing the prompt."""
    first = 0.0
    request = ask(rng, 4, logit_bias=dict.fromkeys(LETTERS, 100.0))  # letters, so that each token is text at once
    started = time.perf_counter()
    for event in node.generate.Stream(request, timeout=600):
        if event.WhichOneof("event") == "token":
            first = first or time.perf_counter()
    return first - started, event.done.timings.prefill_ms / 1e3


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
    speeds: list[float] = []
    firsts: list[tuple[float, float]] = []
    floor: list[tuple[float, float]] = []
    for _ in range(rounds):
        with running.node("--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", "1024") as node:
            speed(node, rng, 4)
            speeds.append(speed(node, rng, generate))
            firsts += [first_token(node, rng) for _ in range(3)]
        row = rivals.batched_bench(path, PROMPT, generate, [1], THREADS)[1]
        floor.append((row["t_pp"], row["speed_tg"]))
    extra = statistics.median((first - prefill) * 1e3 for first, prefill in firsts)
    running.table(
        [
            ["what", "prompt, s", "first token, s", "tokens/s"],
            ["ours, through gRPC", _listed(p for _, p in firsts), _listed(f for f, _ in firsts), _listed(speeds, 1)],
            ["llama-batched-bench", _listed(p for p, _ in floor), "", _listed((s for _, s in floor), 1)],
        ]
    )
    running.finish(
        {
            "decode_over_floor": statistics.median(a / b for a, (_, b) in zip(speeds, floor, strict=True)),
            "first_token_extra_ms": extra,
            "first_token_over_floor_prefill": statistics.median(f for f, _ in firsts)
            / statistics.median(p for p, _ in floor),
        },
        as_json=args.json,
    )


def _listed(values: Iterable[float], places: int = 3) -> str:
    return " ".join(f"{value:.{places}f}" for value in values)


if __name__ == "__main__":
    main()
