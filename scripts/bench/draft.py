"""Prompt lookup: tokens a second with guesses and without, where text repeats and where it does not.

    python scripts/bench/draft.py [--generate 128] [--rounds 3] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0, two threads, through our gRPC. It writes letters only:
greedily, which such a model soon does in circles (the good case: guesses are often right), or at random (the bad one:
they hardly ever are, and cost what they cost). Rounds go A B A B, with the same seeds.
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
from scripts.bench import running
from scripts.bench.candidates import THREADS, text
from scripts.bench.make_model import LETTERS, model

CASES = {"text that repeats (greedy)": 0.0, "random letters": 0.8}


def speed(node: running.Node, seed: int, generate: int, temperature: float) -> tuple[float, str]:
    """Tokens a second after the prompt, and what was written."""
    rng = random.Random(seed)
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=text(rng, 256))],
        candidates=1, scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(
            max_tokens=generate, seed=seed, ignore_eos=True, temperature=temperature,
            logit_bias=dict.fromkeys(LETTERS, 100.0),
        ),
    )  # fmt: skip
    started = time.perf_counter()
    answer = node.generate.Generate(request, timeout=600)
    took = time.perf_counter() - started - (answer.timings.queue_ms + answer.timings.prefill_ms) / 1e3
    assert answer.usage.completion_tokens == generate
    return (generate - 1) / took, answer.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 48 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, generate = (1, 48) if args.quick else (args.rounds, args.generate)
    flags = ("--join", "none", "--model", str(model("q8_0")), "--threads", str(THREADS), "--ctx", "1024")
    rows: list[list[object]] = [["what", "without, tokens/s", "with, tokens/s", "times as fast", "same text"]]
    figures: dict[str, object] = {}
    with running.node(*flags, "--draft", "0") as plain, running.node(*flags) as guessing:
        for node in (plain, guessing):
            speed(node, 0, 16, 0.8)
        for name, temperature in CASES.items():
            pairs = []
            for i in range(rounds):
                pairs.append(
                    (speed(plain, i + 1, generate, temperature), speed(guessing, i + 1, generate, temperature))
                )
            without, with_guesses = ([pair[j][0] for pair in pairs] for j in (0, 1))
            ratio = statistics.median(b / a for a, b in zip(without, with_guesses, strict=True))
            same = sum(a[1] == b[1] for a, b in pairs)
            rows.append([
                name, f"{statistics.median(without):.1f}", f"{statistics.median(with_guesses):.1f}", f"{ratio:.2f}",
                f"{same} of {rounds}",
            ])  # fmt: skip
            figures[name] = ratio
    running.table(rows)
    running.finish({"draft_speedup": figures}, as_json=args.json)


if __name__ == "__main__":
    main()
