"""Where the KV of forty topics and of eight candidates should lie: one unified cache, or a stream for each sequence.

    python scripts/bench/layout.py [--rounds 40] [--quick] [--json]

llama.cpp driven by hand on our kernels, all layouts in one process and in turn (A B C A B C), so that nothing but the
layout differs: the shape of Qwen2.5-0.5B, Q8_0, two threads, f16 KV, flash attention. Idle topics beyond 512 cells are
copied out of the unified cache, which is what our node does; or all of them stay in it; or each has a stream of its own
(`kv_unified` off, llama-server's `-no-kvu`). Milliseconds of a turn's 42 tokens after 300 of its topic, the copying
back beside it; and of forking eight candidates from a prompt of 512 tokens and their steps.

Keys: `turn_ms`, `restore_ms`, `step_ms`, `fork_ms` (with the first step) by layout; `streams_over_parked` of a turn
with what was copied back for it, `streams_over_unified` of the candidates' steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import llama_cpp as ll

from node.core.shape import UBATCH
from node.engine.backend import Row
from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.slots import IDLE_CELLS
from scripts.bench import running
from scripts.bench.make_model import model

THREADS = 2
TOPIC, TURN = 300, 42  # tokens said in a topic, and of a turn
PROMPT, CANDIDATES, STEPS = 512, 8, 16
ROOM = 1024  # cells of a stream
LAYOUTS = ("parked", "shared", "streams")

Times = dict[str, list[float]]


def make(path: Path, sequences: int, *, streams: bool) -> LlamaBackend:
    """A backend with room for all sequences at once."""
    init = ll.llama_init_from_model

    def separate(weights: Any, params: Any) -> Any:
        params.kv_unified, params.n_ctx = False, ROOM * params.n_seq_max
        return init(weights, params)

    options = LlamaOptions(path, "layout", "", sequences, ROOM, cells=ROOM * sequences, threads=THREADS)
    with mock.patch.object(ll, "llama_init_from_model", separate if streams else init):
        return LlamaBackend(options)


def rows(sequence: int, begin: int, count: int) -> list[Row]:
    """Tokens of one sequence, the last with logits."""
    return [Row(100 + (begin + i) * 7 % 400, begin + i, sequence, i == count - 1) for i in range(count)]


def prompt(backend: LlamaBackend, sequence: int, count: int) -> None:
    for begin in range(0, count, UBATCH):
        backend.decode(rows(sequence, begin, min(UBATCH, count - begin)))


def timed(backend: LlamaBackend, batch: list[Row]) -> float:
    """Milliseconds of a batch."""
    started = time.perf_counter()
    backend.decode(batch)
    return (time.perf_counter() - started) * 1e3


def topics(path: Path, count: int, rounds: int) -> tuple[Times, list[float]]:
    """Turns of each layout, and what copying a topic back takes."""
    backends = {
        "parked": make(path, 4, streams=False),
        "shared": make(path, count, streams=False),
        "streams": make(path, count, streams=True),
    }
    states = {}
    for name, backend in backends.items():
        prompt(backend, 0, TOPIC)
        state = states[name] = backend.export(0)  # a copy says how many streams there are, and fits its like only
        for sequence in range(1, 1 + IDLE_CELLS // TOPIC if name == "parked" else count):
            if not backend.restore(sequence, state):
                raise RuntimeError("a copy of the KV could not be restored")
    took: Times = defaultdict(list)
    restored: list[float] = []
    for i in range(rounds + 1):
        sequence = i % count
        for name in LAYOUTS if i % 2 else LAYOUTS[::-1]:
            backend, at = backends[name], 0 if name == "parked" else sequence
            if name == "parked":  # another's KV was there
                backend.drop(0)
                started = time.perf_counter()
                backend.restore(0, states[name])
                restored.append((time.perf_counter() - started) * 1e3)
            took[name].append(timed(backend, rows(at, TOPIC, TURN)))
            if name != "parked" and not backend.truncate(at, TOPIC):
                raise RuntimeError("a turn could not be taken back")
    for backend in backends.values():
        backend.close()
    return {name: times[1:] for name, times in took.items()}, restored[1:]


def candidates(path: Path, rounds: int) -> tuple[Times, Times]:
    """Milliseconds of forking with the first step, and of the steps that follow, unified and with streams."""
    backends = {name: make(path, CANDIDATES, streams=name == "streams") for name in ("unified", "streams")}
    first: Times = defaultdict(list)
    steps: Times = defaultdict(list)
    for backend in backends.values():
        prompt(backend, 0, PROMPT)
    for i in range(rounds + 1):
        for name in list(backends) if i % 2 else list(backends)[::-1]:
            backend = backends[name]
            started = time.perf_counter()
            for sequence in range(1, CANDIDATES):
                # A stream can be copied as a whole only; in a unified cache cells are marked.
                ll.llama_memory_seq_cp(backend._memory, 0, sequence, -1, -1)
            for step in range(STEPS):
                batch = [Row(100 + step, PROMPT + step, sequence, True) for sequence in range(CANDIDATES)]
                backend.decode(batch)
                now = time.perf_counter()
                if i:
                    (steps if step else first)[name].append((now - started) * 1e3)
                started = now
            for sequence in range(1, CANDIDATES):
                backend.drop(sequence)
            if not backend.truncate(0, PROMPT):
                raise RuntimeError("the candidates could not be taken back")
    for backend in backends.values():
        backend.close()
    return first, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="four topics, eight rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    count, rounds = (4, 8) if args.quick else (args.topics, args.rounds)
    path = model("q8_0")
    took, restored = topics(path, count, rounds)
    first, steps = candidates(path, max(rounds // 4, 2))
    median = statistics.median
    back = median(restored)
    turn = {name: median(took[name]) for name in LAYOUTS}
    running.table(
        [
            [f"a turn of {TURN} after {TOPIC}, {count} topics", "ms", "copied back, ms"],
            *([name, f"{turn[name]:.1f}", f"{back:.1f}" if name == "parked" else ""] for name in LAYOUTS),
        ]
    )
    print()
    running.table(
        [
            [f"{CANDIDATES} candidates after {PROMPT}", "fork and first step, ms", "a later step, ms"],
            *([name, f"{median(first[name]):.1f}", f"{median(steps[name]):.1f}"] for name in first),
        ]
    )
    pairs = zip(took["streams"], took["parked"], restored, strict=True)
    figures: dict[str, object] = {
        "turn_ms": turn,
        "restore_ms": back,
        "fork_ms": {name: median(times) for name, times in first.items()},
        "step_ms": {name: median(times) for name, times in steps.items()},
        "streams_over_parked": median(s / (p + r) for s, p, r in pairs),
        "shared_over_parked": median(s / p for s, p in zip(took["shared"], took["parked"], strict=True)),
        "streams_over_unified": median(s / u for s, u in zip(steps["streams"], steps["unified"], strict=True)),
        "topics": count,
    }
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
