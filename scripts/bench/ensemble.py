"""Does it pay to let a worse model vote too? The bundled model and a copy with noise in its weights, in one mesh.

    python scripts/bench/ensemble.py [--problems 300] [--noise 0.13] [--quick] [--json]

Two real nodes that meet each other; every row asks one of them, over gRPC, for nine candidates by majority, without
early stop. "Equal weights" is a node that learns no record; "by record" one that begins with none, so the questions on
which it learns count too. The same seeds in every row. The floor is the better model alone with as many candidates, and
the rival the same votes with equal weights.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.models.resolve import BUNDLED
from node.v1 import generate_pb2, types_pb2
from scripts.bench import running
from scripts.model.problems import Problem, held_out

CLIENTS = 2
CANDIDATES = 9
NAME = b"conclave-demo"
WORSE = b"the-worse-one"  # as long, so that the file keeps its shape


def noisy(path: Path, noise: float, seed: int = 7) -> Path:
    """A copy of the bundled model with Gaussian noise on every weight matrix, `noise` times its standard deviation."""
    from gguf import GGUFReader

    shutil.copyfile(BUNDLED, path)
    path.chmod(0o600)
    reader = GGUFReader(str(path), "r+")
    rng = np.random.default_rng(seed)
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            weights = np.asarray(tensor.data, np.float32)
            tensor.data[:] = weights + rng.normal(0, noise * weights.std(), weights.shape)
    name = reader.fields["general.name"]
    name.parts[name.data[0]][:] = np.frombuffer(WORSE, np.uint8)
    reader.data.flush()
    return path


@dataclass(frozen=True)
class Row:
    """One way of asking: which node, and whom it lets vote."""

    name: str
    asked: str  # "bundled" or "worse"
    with_guests: bool
    learns: bool = True


ROWS = (
    Row("bundled alone", "bundled", with_guests=False),
    Row("worse alone", "worse", with_guests=False),
    Row("bundled asked, equal weights", "bundled", with_guests=True, learns=False),
    Row("bundled asked, by record", "bundled", with_guests=True),
    Row("worse asked, equal weights", "worse", with_guests=True, learns=False),
    Row("worse asked, by record", "worse", with_guests=True),
)


@dataclass(frozen=True)
class Answered:
    """One problem, answered: whether right, candidates of the other model, and what those of the model asked and of the
    other weighed (0: it did not vote)."""

    right: bool
    guests: int
    weights: tuple[float, float]


@contextmanager
def mesh(model: Path, learns: bool) -> Iterator[dict[str, running.Node]]:
    """Both nodes, when each sees the other."""
    program = ("node",) if learns else ("scripts.bench.variant", "equal")
    flags = ("--early-stop", "off", "--slots", "32", "--kv-memory", "0", "--http-port", "0", "--replicas", "0")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-bench-")))
        nodes = {}
        for name, path in (("bundled", "bundled"), ("worse", str(model))):
            more = ("--data-dir", str(home / name), "--model", path)
            nodes[name] = stack.enter_context(running.node(*flags, *more, home=home, program=program))
        until = time.monotonic() + 30
        while any(len(n.status().nodes) < 2 for n in nodes.values()):
            if time.monotonic() > until:
                sys.exit("the nodes did not meet")
            time.sleep(0.1)
        yield nodes


def ask(node: running.Node, row: Row, problem: Problem, seed: int) -> Answered:
    local, everywhere = generate_pb2.SCOPE_LOCAL, generate_pb2.SCOPE_MESH
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=problem.question)],
        candidates=CANDIDATES,
        strategy="majority",
        scope=everywhere if row.with_guests else local,
        params=types_pb2.SamplingParams(temperature=0.8, top_p=1.0, top_k=0, min_p=0.0, seed=seed),
    )
    answer = node.generate.Generate(request, timeout=300)
    winner = next(c for c in answer.candidates if c.id == answer.outcome.winner)
    own = answer.candidates[0].model
    weights = {m.model: m.weight for m in answer.outcome.models}
    return Answered(
        winner.answer == str(problem.answer),
        sum(c.model != own for c in answer.candidates),
        (weights.get(own, 1.0), next((w for m, w in weights.items() if m != own), 0.0)),
    )


def measure(row: Row, model: Path, problems: Sequence[Problem]) -> list[Answered]:
    with mesh(model, row.learns) as nodes, ThreadPoolExecutor(CLIENTS) as pool:
        node = nodes[row.asked]
        return list(pool.map(lambda x: ask(node, row, x[1], 1000 + x[0]), enumerate(problems)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.13, help="noise over each matrix's standard deviation")
    parser.add_argument("--quick", action="store_true", help="30 problems")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    problems = held_out(30 if args.quick else args.problems, seed=20)
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as folder:
        model = noisy(Path(folder) / "worse.gguf", args.noise)
        results = {row: measure(row, model, problems) for row in ROWS}
    alone = {row.asked: results[row] for row in ROWS if not row.with_guests}
    table: list[list[object]] = [
        [
            "asked",
            "right",
            "better / worse than the same node alone",
            "candidates of the other model",
            "weights at last",
        ]
    ]
    for row, answered in results.items():
        base = alone[row.asked]
        gained = sum(a.right and not b.right for a, b in zip(answered, base, strict=True))
        lost = sum(b.right and not a.right for a, b in zip(answered, base, strict=True))
        guests = sum(a.guests for a in answered) / len(answered)
        own, other = answered[-1].weights
        table.append(
            [
                row.name,
                f"{accuracy(answered):.1%}",
                f"{gained} / {lost}" if row.with_guests else "",
                f"{guests:.1f} of {CANDIDATES}" if row.with_guests else "",
                f"{own:.2f}, {other:.2f}" if row.with_guests else "",
            ]
        )
    running.table(table)
    print(f"\n{len(problems)} held-out problems; noise {args.noise:g}.")
    keys = ("bundled", "worse", "bundled_equal", "bundled_record", "worse_equal", "worse_record")
    figures: dict[str, object] = {
        f"accuracy_{key}": accuracy(results[row]) for key, row in zip(keys, ROWS, strict=True)
    }
    running.finish({**figures, "problems": len(problems), "noise": args.noise}, as_json=args.json)


def accuracy(answered: Sequence[Answered]) -> float:
    return sum(a.right for a in answered) / len(answered)


if __name__ == "__main__":
    main()
