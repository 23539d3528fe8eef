"""Forty topics in turn: how long until the first token, against llama-server with a pinned slot for each.

    python scripts/bench/topics.py [--topics 40] [--messages 160] [--kind round-robin] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0, two threads, f16 KV, flash attention. Both get the same token
sequences: the client sends the whole conversation, with a fixed text for every answer. Turns alternate between the two
programs, so noise of the machine hits both. Ours keeps idle topics parked in memory outside the context; llama-server
has a separate KV stream for each slot (-no-kvu, its best). The first cycle, which computes every topic's beginning, is
left out of the figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.make_model import model
from scripts.bench.traces import trace

THREADS = 2
FIRST, TOKENS = 256, 16
ANSWER = "fine."


class Ours:
    """Our node, over gRPC."""

    def __init__(self, node: running.Node) -> None:
        self._node = node
        self._said: dict[int, list[types_pb2.Message]] = defaultdict(list)

    def turn(self, topic: int, text: str) -> tuple[float, int]:
        """Seconds to the first token, and tokens that were computed."""
        said = self._said[topic]
        said.append(types_pb2.Message(role="user", content=text))
        request = generate_pb2.GenerateRequest(
            topic=f"t{topic}", messages=said, candidates=1, scope=generate_pb2.SCOPE_LOCAL,
            params=types_pb2.SamplingParams(max_tokens=1, seed=1),
        )  # fmt: skip
        started = time.perf_counter()
        first = 0.0
        for event in self._node.generate.Stream(generate_pb2.StreamRequest(request=request), timeout=600):
            # A token may be half a character, which is not sent: the candidate's end, with its only token, is.
            if not first and event.WhichOneof("event") in ("token", "candidate"):
                first = time.perf_counter() - started
        usage = event.done.usage
        said.append(types_pb2.Message(role="assistant", content=ANSWER))
        return first, usage.prompt_tokens - usage.cached_tokens


class Theirs:
    """llama-server, over HTTP, a pinned slot a topic."""

    def __init__(self, server: rivals.Server, slots: int) -> None:
        self._server = server
        self._slots = slots
        self._said: dict[int, str] = defaultdict(str)

    def turn(self, topic: int, text: str) -> tuple[float, int]:
        said = self._said[topic] + f"<|im_start|>user\n{text}<|im_end|>\n"
        body = {
            "prompt": said + "<|im_start|>assistant\n", "n_predict": 1, "cache_prompt": True, "ignore_eos": True,
            "id_slot": topic % self._slots if self._slots else -1,
        }  # fmt: skip
        first, _, last = self._server.first_token(body)
        self._said[topic] = said + f"<|im_start|>assistant\n{ANSWER}<|im_end|>\n"
        return first, int(last["timings"]["prompt_n"])


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=40)
    parser.add_argument("--messages", type=int, default=0, help="default: four for each topic")
    parser.add_argument("--kind", choices=["round-robin", "zipf"], default="round-robin")
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--quick", action="store_true", help="8 topics, 32 messages")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    topics = 8 if args.quick else args.topics
    messages = args.messages or 4 * topics
    path = model("q8_0")
    context = 1024
    took: dict[str, list[float]] = {"ours": [], "llama-server": []}
    computed: dict[str, list[int]] = {"ours": [], "llama-server": []}
    seen: set[int] = set()
    with (
        running.node("--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", str(context)) as node,
        rivals.server(
            path, "-c", str(context * topics), "-np", str(topics), "-no-kvu", "--slot-prompt-similarity", "0",
            threads=THREADS,
        ) as server,
    ):  # fmt: skip
        programs = {"ours": Ours(node), "llama-server": Theirs(server, topics)}
        for i, turn in enumerate(trace(args.kind, topics, messages, args.first, TOKENS)):
            order = list(programs) if i % 2 else list(reversed(programs))
            for name in order:
                seconds, tokens = programs[name].turn(turn.topic, turn.text)
                if turn.topic in seen:
                    took[name].append(seconds * 1e3)
                    computed[name].append(tokens)
            seen.add(turn.topic)
    rows: list[list[object]] = [["first token, ms", "median", "mean", "p99", "p99/p50", "tokens computed a turn"]]
    figures: dict[str, float] = {}
    for name, values in took.items():
        p50, p99 = statistics.median(values), percentile(values, 0.99)
        figures[name] = p99 / p50
        rows.append(
            [name, f"{p50:.1f}", f"{statistics.mean(values):.1f}", f"{p99:.1f}", f"{p99 / p50:.2f}",
             f"{statistics.mean(computed[name]):.1f}"]
        )  # fmt: skip
    running.table(rows)
    size = len(took["ours"]) // max(messages // topics - 1, 1)
    second = statistics.median(took["ours"][:size])
    last = statistics.median(took["ours"][-size:])
    print(f"\n{topics} topics, {messages} messages ({args.kind}); a topic begins with {args.first} tokens")
    running.finish(
        {
            "p99_over_p50": figures["ours"],
            "server_p99_over_p50": figures["llama-server"],
            "last_cycle_over_second": last / second,
            "over_server": statistics.median(t / o for o, t in zip(took["ours"], took["llama-server"], strict=True)),
            "topics": topics,
            "messages": messages,
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
