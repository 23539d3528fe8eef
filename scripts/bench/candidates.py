"""N candidates of one prompt: through our gRPC, against llama-batched-bench (the floor), llama-server and N processes.

    python scripts/bench/candidates.py [--generate 64] [--rounds 3] [--servers] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0; 512 prompt tokens that nobody has seen before, two threads,
f16 KV, flash attention. Rounds go A B C A B C; ratios are medians over rounds. The rivals are llama.cpp as it is built
from the same source; ours has our kernels (scripts/kernels). The processes are the older design, a process with its own
model a candidate: on llama.cpp's own library with one and with two threads each, the better of which counts, and on
ours, which tells the design's share from the kernels'.

On two quiet cores three rounds take five minutes with 64 tokens, seven with 128. `--servers` runs ours and
llama-server on our kernels only, in turn, both up all the time: what is equal but for the program.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.make_model import model

PROMPT = 512
THREADS = 2
SERVER, SERVER_OURS = "llama-server, n_cmpl 8", "llama-server on our kernels, n_cmpl 8"
# ChatML of one user message: the control tokens, the role and line breaks (one token a byte).
OVERHEAD = len("user\n") + 2 + len("\n") + 1 + len("assistant\n")


def text(rng: random.Random, tokens: int) -> str:
    """Text of so many tokens: single bytes, and never twice the same."""
    return "".join(rng.choice("abcdefgijklmnopqrsuvwxyz ") for _ in range(tokens))  # no "th", which is one token


def ours(node: running.Node, rng: random.Random, candidates: int, generate: int) -> float:
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content=text(rng, PROMPT - OVERHEAD))],
        candidates=candidates,
        strategy="majority",
        scope=generate_pb2.SCOPE_LOCAL,
        params=types_pb2.SamplingParams(max_tokens=generate, seed=rng.randrange(1 << 32)),
    )
    started = time.perf_counter()
    answer = node.generate.Generate(request, timeout=600)
    took = time.perf_counter() - started
    assert abs(answer.usage.prompt_tokens - PROMPT) <= 4, answer.usage
    assert answer.usage.candidate_tokens >= 0.99 * candidates * generate, answer.usage
    return took


def theirs(server: rivals.Server, rng: random.Random, candidates: int, generate: int) -> float:
    started = time.perf_counter()
    body = {
        "prompt": text(rng, PROMPT), "n_predict": generate, "n_cmpl": candidates, "ignore_eos": True,
        "cache_prompt": False, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
    }  # fmt: skip
    server.post("/completion", body)
    return time.perf_counter() - started


def servers(path: Path, generate: int, rounds: int, *, as_json: bool) -> None:
    """Ours and llama-server on our kernels, in turn."""
    rng = random.Random(time.time_ns())
    times: dict[str, list[float]] = {"ours": [], SERVER_OURS: []}
    with (
        running.node(*_node(path)) as node,
        rivals.server(path, "-c", str(8 * 1024), "-np", "8", "-kvu", threads=THREADS, our_kernels=True) as server,
    ):
        ours(node, rng, 1, 4)
        theirs(server, rng, 1, 4)
        for i in range(rounds):
            for name in list(times) if i % 2 else list(times)[::-1]:
                took = ours(node, rng, 8, generate) if name == "ours" else theirs(server, rng, 8, generate)
                times[name].append(took)
    for name, values in times.items():
        print(f"{name}: {' '.join(f'{value:.2f}' for value in values)} s")
    ratio = statistics.median(times[SERVER_OURS]) / statistics.median(times["ours"])
    figures: dict[str, object] = {"n8_over_server_on_our_kernels": ratio, "generated_tokens": generate}
    running.finish(figures, as_json=as_json)


def _node(path: Path) -> tuple[str, ...]:
    """Flags of a node of ours."""
    return ("--join", "none", "--model", str(path), "--threads", str(THREADS), "--early-stop", "off", "--slots", "8",
            "--ctx", "1024")  # fmt: skip


@dataclass(frozen=True)
class Processes:
    """What so many processes took: seconds, and memory of all in bytes, shared pages in each and counted once."""

    seconds: float
    rss: int
    pss: int


def processes(path: Path, candidates: int, generate: int, threads: int, library: Path | None) -> Processes:
    """The older design. `library` is a folder with another build of llama.cpp."""
    command = [sys.executable, "-m", "scripts.bench.one_process", str(path), str(PROMPT), str(generate), str(threads)]
    env = {**os.environ, **({"LLAMA_CPP_LIB_PATH": str(library)} if library else {})}
    started_all = [
        subprocess.Popen(command, cwd=running.ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(candidates)
    ]
    for process in started_all:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    started = time.perf_counter()
    for process in started_all:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started_all:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
    took = time.perf_counter() - started
    memory = [psutil.Process(p.pid).memory_full_info() for p in started_all]
    for process in started_all:
        process.communicate("stop\n")
    return Processes(took, sum(m.rss for m in memory), sum(m.pss for m in memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", action="store_true", help="ours and llama-server on our kernels only")
    parser.add_argument("--quick", action="store_true", help="one round of 16 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, generate = (1, 16) if args.quick else (args.rounds, args.generate)
    if args.servers:
        servers(model("q8_0"), generate, rounds, as_json=args.json)
        return
    running.expect(60 + 1.2 * generate + rounds * (35 + 0.45 * generate))
    rng = random.Random(time.time_ns())
    path = model("q8_0")
    names = ("ours 1", "ours 8", "floor 1", "floor 8", SERVER, SERVER_OURS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        # One after the other, never two models at once: each has the machine to itself.
        with running.node(*_node(path)) as node:
            ours(node, rng, 1, 4)
            times["ours 1"].append(ours(node, rng, 1, generate))
            times["ours 8"].append(ours(node, rng, 8, generate))
            memory = psutil.Process(node.process.pid).memory_full_info()
        floor = rivals.batched_bench(path, PROMPT, generate, [1, 8], THREADS)
        times["floor 1"].append(floor[1]["t"])
        times["floor 8"].append(floor[8]["t"])
        for name in (SERVER, SERVER_OURS):
            flags = ("-c", str(8 * 1024), "-np", "8", "-kvu")
            with rivals.server(path, *flags, threads=THREADS, our_kernels=name == SERVER_OURS) as server:
                theirs(server, rng, 1, 4)
                times[name].append(theirs(server, rng, 8, generate))
    stock = rivals.build()
    older = {
        "8 processes, 1 thread each": processes(path, 8, generate, 1, stock),
        "8 processes, 2 threads each": processes(path, 8, generate, 2, stock),
        "8 processes, 1 thread each, our kernels": processes(path, 8, generate, 1, None),
    }
    best = min(list(older.values())[:2], key=lambda each: each.seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in times.items()}
    rows: list[list[object]] = [["what", "seconds, median", "range", "tokens/s"]]
    for name, value in medians.items():
        rows.append([name, f"{value:.2f}", spread[name], f"{(1 if name.endswith('1') else 8) * generate / value:.1f}"])
    rows += [[name, f"{p.seconds:.2f}", "once", f"{8 * generate / p.seconds:.1f}"] for name, p in older.items()]
    running.table(rows)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    print(f"\nmemory, MiB: ours {memory.rss >> 20}, 8 processes {best.rss >> 20} (resident, RSS)")
    print(f"with pages that they share counted once: {memory.pss >> 20} and {best.pss >> 20} (PSS)")
    running.finish(
        {
            "n8_over_n1": ratio("ours 8", "ours 1"),
            "n8_over_floor": ratio("ours 8", "floor 8"),
            "n8_over_server": ratio(SERVER, "ours 8"),
            "n8_over_server_on_our_kernels": ratio(SERVER_OURS, "ours 8"),
            "n8_speedup_over_processes": best.seconds / medians["ours 8"],
            "n8_memory_over_processes": memory.rss / best.rss,
            "n8_memory_over_processes_pss": memory.pss / best.pss,
            "prompt_tokens": PROMPT,
            "generated_tokens": generate,
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
