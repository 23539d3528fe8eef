"""Does voting pay? The bundled model on held-out word problems: greedy, one sample, five, nine, early stop on and off.

    python scripts/bench/votes.py [--problems 300] [--quick] [--json]

Every row asks a real node over gRPC. The floor is one greedy answer; the ceiling is "any of nine".
The same seeds are used in every row, so the rows differ by what is asked of the vote and not by luck.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import running
from scripts.model.problems import Problem, held_out

CLIENTS = 2
BINS = 10


@dataclass(frozen=True)
class Row:
    """One way of asking."""

    name: str
    candidates: int
    strategy: str = "majority"
    early_stop: str = "off"
    temperature: float = 0.8
    plain: bool = True  # nothing but the temperature; else the node's own defaults (top_k, top_p, min_p)


ROWS = (
    Row("greedy", 1, temperature=0.0),
    Row("1 sample", 1),
    Row("5, majority", 5),
    Row("9, majority", 9),
    Row("9, majority, exact stop", 9, early_stop="exact"),
    Row("9, majority, adaptive stop", 9, early_stop="adaptive"),
    Row("9, confidence", 9, strategy="confidence"),
    Row("9, confidence, adaptive stop", 9, strategy="confidence", early_stop="adaptive"),
    Row("1 sample, the node's defaults", 1, plain=False),
    Row("9, majority, adaptive stop, the node's defaults", 9, early_stop="adaptive", plain=False),
)


@dataclass(frozen=True)
class Answered:
    """One problem, answered."""

    right: bool
    confidence: float
    tokens: int
    finished: int
    rights: int  # of the finished candidates


def ask(node: running.Node, row: Row, problem: Problem, seed: int) -> Answered:
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=problem.question)],
        candidates=row.candidates,
        strategy=row.strategy,
        scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(temperature=row.temperature, seed=seed),
    )
    if row.plain:
        request.params.top_p, request.params.top_k, request.params.min_p = 1.0, 0, 0.0
    answer = node.generate.Generate(request, timeout=300)
    expected = str(problem.answer)
    winner = next(c for c in answer.candidates if c.id == answer.outcome.winner)
    return Answered(
        winner.answer == expected,
        answer.outcome.confidence,
        answer.usage.candidate_tokens,
        len(answer.candidates),
        sum(c.answer == expected for c in answer.candidates),
    )


def measure(row: Row, problems: list[Problem]) -> list[Answered]:
    with (
        running.node("--join", "none", "--early-stop", row.early_stop, "--slots", "18") as node,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        return list(pool.map(lambda x: ask(node, row, x[1], 1000 + x[0]), enumerate(problems)))


def accuracy(answered: list[Answered]) -> float:
    return sum(a.right for a in answered) / len(answered)


def calibration_error(answered: list[Answered]) -> float:
    """Expected calibration error: |share right - mean confidence| over ten bins, by size (arXiv 1706.04599)."""
    bins: list[list[Answered]] = [[] for _ in range(BINS)]
    for a in answered:
        bins[min(int(a.confidence * BINS), BINS - 1)].append(a)
    return sum(abs(sum(a.right for a in b) - sum(a.confidence for a in b)) / len(answered) for b in bins if b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="60 problems, four rows")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    count = 60 if args.quick else args.problems
    names = {"greedy", "1 sample", "9, majority", "9, majority, adaptive stop"} if args.quick else None
    problems = held_out(count, seed=20)
    results = {r.name: measure(r, problems) for r in ROWS if names is None or r.name in names}
    nine = results["9, majority"]
    tokens = sum(a.tokens for a in nine)
    rows: list[list[object]] = [["asked", "right", "tokens", "tokens against 9 without stop", "calibration error"]]
    for name, answered in results.items():
        spent = sum(a.tokens for a in answered)
        rows.append(
            [name, f"{accuracy(answered):.1%}", spent, f"{spent / tokens:.2f}", f"{calibration_error(answered):.3f}"]
        )
    rows.append(["any of nine", f"{sum(a.rights > 0 for a in nine) / count:.1%}", tokens, "1.00", ""])
    running.table(rows)
    sample = sum(a.rights for a in nine) / sum(a.finished for a in nine)
    print(f"\n{count} held-out problems; one sample is right {sample:.1%} of the time (mean of all nine).")
    adaptive = results["9, majority, adaptive stop"]
    running.finish(
        {
            "accuracy_greedy": accuracy(results["greedy"]),
            "accuracy_1": sample,
            "accuracy_5": accuracy(results["5, majority"]) if "5, majority" in results else None,
            "accuracy_9": accuracy(nine),
            "accuracy_9_adaptive": accuracy(adaptive),
            "tokens_saved": 1 - sum(a.tokens for a in adaptive) / tokens,
            "ece": calibration_error(nine),
            "problems": count,
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
