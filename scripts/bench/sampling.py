"""What choosing a token costs over a vocabulary of 151,936, beside llama_sampler_sample and a log probability in NumPy.

    python scripts/bench/sampling.py [--quick] [--json]

Each round decodes one step of 1 and of 8 candidates of the random-weight model in the shape of Qwen2.5-0.5B, and draws
every candidate's token both ways from the same logits, in turn first and second. Keys: `ms_N_KIND` (ours, a token),
`over_plain_N_KIND` (theirs / ours, higher is better) for N of 1 and 8 and KIND of greedy, default, penalties, plain.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.engine.llamacpp import LlamaBackend, LlamaOptions  # isort: skip  (sets up OpenMP before llama_cpp loads)

import llama_cpp as ll
import numpy as np

from node.engine.backend import Row
from node.engine.llamacpp.sampling import PENALTY_WINDOW
from node.types import SamplingParams
from scripts.bench import make_model
from scripts.bench.running import finish, table

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "default": SamplingParams(),
    "penalties": SamplingParams(repeat_penalty=1.1, presence_penalty=0.5),
    "plain": SamplingParams(top_k=0, top_p=1.0, min_p=0.0),
}


class Plain:
    """One chain over all tokens by llama_sampler_sample, and the log probability by NumPy."""

    def __init__(self, params: SamplingParams, seed: int, vocabulary: int) -> None:
        self.chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        add = ll.llama_sampler_chain_add
        if params.repeat_penalty != 1.0:
            add(
                self.chain,
                ll.llama_sampler_init_penalties(
                    vocabulary, PENALTY_WINDOW, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
                ),
            )
        if params.temperature == 0:
            add(self.chain, ll.llama_sampler_init_greedy())
            return
        if params.top_k:
            add(self.chain, ll.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            add(self.chain, ll.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            add(self.chain, ll.llama_sampler_init_min_p(params.min_p, 1))
        add(self.chain, ll.llama_sampler_init_temp(params.temperature))
        add(self.chain, ll.llama_sampler_init_dist(seed))

    def sample(self, ctx: Any, row: int, vocabulary: int) -> tuple[int, float]:
        logits = np.ctypeslib.as_array(ll.llama_get_logits_ith(ctx, row), shape=(vocabulary,))
        top = float(logits.max())
        total = float(np.exp(logits - top).sum())
        token = int(ll.llama_sampler_sample(self.chain, ctx, row))
        return token, float(logits[token]) - top - math.log(total)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1e3, result


def measure(backend: LlamaBackend, params: SamplingParams, n: int, steps: int) -> tuple[float, float]:
    """Milliseconds a token: ours, theirs; medians of the steps."""
    vocabulary, ctx = backend.info.vocabulary, backend._ctx
    prompt = backend.tokenize("What is this? ")
    for sequence in range(n):
        backend.drop(sequence)
        backend.decode([Row(t, i, sequence, False) for i, t in enumerate(prompt)])
    ours = [backend.sampler(params, i, []) for i in range(n)]
    theirs = [Plain(params, i, vocabulary) for i in range(n)]
    tokens = [prompt[-1]] * n
    times: tuple[list[float], list[float]] = ([], [])
    for step in range(steps):
        backend.decode([Row(t, len(prompt) + step, i, True) for i, t in enumerate(tokens)])
        both = [
            lambda: [backend.sample(s, i) for i, s in enumerate(ours)],
            lambda: [s.sample(ctx, i, vocabulary) for i, s in enumerate(theirs)],
        ]
        drawn: list[Any] = [None, None]
        for which in (0, 1) if step % 2 else (1, 0):
            took, drawn[which] = timed(both[which])
            times[which].append(took / n)
        # From the plain distribution ours takes two draws, so other tokens of the same distribution.
        if params != KINDS["plain"] and [t for t, _ in drawn[0]] != [t for t, _ in drawn[1]]:
            sys.exit(f"the two ways drew other tokens at step {step}")
        tokens = [t for t, _ in drawn[0]]
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = LlamaOptions(make_model.model(), "random", "fp", sequences=8, context=512)
    backend = LlamaBackend(options)
    steps = 20 if args.quick else 100
    figures: dict[str, object] = {}
    rows = [("sampling", "candidates", "ours, ms a token", "llama_sampler_sample and NumPy, ms a token", "times")]
    for n in (1, 8):
        for kind, params in KINDS.items():
            ours, theirs = measure(backend, params, n, steps)
            figures |= {f"ms_{n}_{kind}": round(ours, 3), f"over_plain_{n}_{kind}": round(theirs / ours, 2)}
            rows.append((kind, str(n), f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f}"))
    backend.close()
    table(rows)
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
