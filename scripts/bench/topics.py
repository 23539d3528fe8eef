"""Forty topics in turn, and eighty on room for forty: how long until the first token.

    python scripts/bench/topics.py [--part pinned|lru|parked|all] [--topics 40] [--messages 160]
                                   [--kind round-robin|zipf|all] [--quick] [--json]

A random-weight model in the shape of Qwen2.5-0.5B, Q8_0, two threads, f16 KV, flash attention. All get the same token
sequences: the client sends the whole conversation, with a fixed text for every answer. Turns alternate between the
programs, so noise of the machine hits all. What computes a topic's beginning is left out of the figures.

pinned: ours keeps idle topics parked in memory outside the context; llama-server has a pinned slot for each, with a
separate KV stream (-no-kvu, its best), on its own kernels and on ours; the naive way is our node with all topics in the
one context.
lru and parked: twice as many topics as there is room for. In lru, ours and plain LRU have memory for half of the topics
and no disk. In parked, ours as it is by default against llama-server with a slot for half of the topics and its RAM
cache, by default too, on its own kernels and on ours.

Of both kinds of traces the keys of the second begin with `zipf_`. On two quiet cores pinned and lru take three minutes
a kind, parked three and a half: there a topic has its beginning and one turn (`--messages 240` gives it two).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import rivals, running
from scripts.bench.make_model import model
from scripts.bench.traces import trace

THREADS = 2
CONTEXT = 1024  # of a topic, at least; the most popular ones of a Zipf trace need more
FIRST, TOKENS = 256, 16
KINDS = ("round-robin", "zipf")
# Messages of a topic: a beginning and some turns, as many as four minutes allow.
MESSAGES = {"pinned": 4, "lru": 3, "parked": 2}
# Programs of each part on our kernels and on llama.cpp's own, and about how long a turn takes all of them, in seconds.
PROGRAMS = {"pinned": (3, 1, 0.6), "lru": (2, 0, 0.7), "parked": (2, 1, 0.55)}
OVERHEAD, TURN = 20, 42  # tokens of the template around a first message, and of a whole later turn
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


@dataclass
class Times:
    """Of one program: milliseconds to the first token and tokens computed, a turn each, beginnings left out."""

    first: list[float] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.first)

    @property
    def p99(self) -> float:
        return sorted(self.first)[min(int(0.99 * len(self.first)), len(self.first) - 1)]

    @property
    def mean(self) -> float:
        return statistics.mean(self.first)


def run(programs: dict[str, Ours | Theirs], kind: str, topics: int, messages: int, first: int) -> dict[str, Times]:
    """Every turn of a trace on every program, in changing order."""
    times = {name: Times() for name in programs}
    seen: set[int] = set()
    for i, turn in enumerate(trace(kind, topics, messages, first, TOKENS)):
        for name in list(programs) if i % 2 else list(reversed(programs)):
            seconds, tokens = programs[name].turn(turn.topic, turn.text)
            if turn.topic in seen:
                times[name].first.append(seconds * 1e3)
                times[name].computed.append(tokens)
        seen.add(turn.topic)
    rows: list[list[object]] = [["first token, ms", "median", "mean", "p99", "p99/p50", "tokens computed a turn"]]
    for name, t in times.items():
        tokens_a_turn = f"{statistics.mean(t.computed):.1f}"
        rows.append([name, f"{t.p50:.1f}", f"{t.mean:.1f}", f"{t.p99:.1f}", f"{t.p99 / t.p50:.2f}", tokens_a_turn])
    print(f"\n{topics} topics, {messages} messages ({kind}); a topic begins with {first} tokens\n")
    running.table(rows)
    return times


def longest(kind: str, topics: int, messages: int, first: int) -> int:
    """Tokens of a context for a trace's longest conversation, a multiple of 256."""
    turns = Counter(turn.topic for turn in trace(kind, topics, messages, first, TOKENS))
    most = first + OVERHEAD + max(turns.values()) * TURN
    return max(CONTEXT, -(-most // 256) * 256)


def pinned(path: Path, kind: str, topics: int, messages: int, first: int) -> dict[str, object]:
    context = longest(kind, topics, messages, first)
    node = _node(path, context)
    with (
        running.node(*node) as ours,
        running.node(*node, "--slots", str(topics + 1), program=("scripts.bench.variant", "shared")) as shared,
        rivals.server(
            path, "-c", str(context * topics), "-np", str(topics), "-no-kvu", "--slot-prompt-similarity", "0",
            threads=THREADS,
        ) as server,
        rivals.server(
            path, "-c", str(context * topics), "-np", str(topics), "-no-kvu", "--slot-prompt-similarity", "0",
            threads=THREADS, our_kernels=True,
        ) as streams,
    ):  # fmt: skip
        programs: dict[str, Ours | Theirs] = {
            "ours": Ours(ours),
            "llama-server": Theirs(server, topics),
            "one shared context": Ours(shared),
            "separate streams (llama-server on our kernels)": Theirs(streams, topics),
        }
        times = run(programs, kind, topics, messages, first)
    mine, theirs = times["ours"], times["llama-server"]
    figures: dict[str, object] = {
        "p99_over_p50": mine.p99 / mine.p50,
        "server_p99_over_p50": theirs.p99 / theirs.p50,
        "over_server": statistics.median(t / o for o, t in zip(mine.first, theirs.first, strict=True)),
        "shared_over_ours": times["one shared context"].mean / mine.mean,
        "streams_over_ours": times["separate streams (llama-server on our kernels)"].mean / mine.mean,
    }
    if kind == "round-robin":
        print("\nthe median of each cycle, ms, from the second\n")
        running.table(
            [["cycle", *range(2, len(mine.first) // topics + 2)]]
            + [
                [name, *(f"{statistics.median(t.first[i : i + topics]):.1f}" for i in range(0, len(t.first), topics))]
                for name, t in times.items()
            ]
        )
        figures["last_cycle_over_second"] = growth(mine.first, topics)
        figures["server_last_cycle_over_second"] = growth(theirs.first, topics)
        figures["streams_last_cycle_over_second"] = growth(
            times["separate streams (llama-server on our kernels)"].first, topics
        )
    return figures


def growth(first: list[float], topics: int) -> float:
    """The median of the last cycle over that of the second, the first that is in `first`."""
    return statistics.median(first[-topics:]) / statistics.median(first[:topics])


def lru(path: Path, kind: str, topics: int, messages: int, first: int) -> dict[str, object]:
    """`topics` is how many there is room for; twice as many come."""
    # Half of a conversation's growth, in cells; the shape has 12,288 bytes a cell in f16.
    cells = first + OVERHEAD + (messages // (2 * topics)) * TURN // 2
    memory = max(topics * cells * 12_288 >> 20, 1)
    # Snapshots on disk would bring back what either lets go of.
    flags = ("--kv-memory", str(memory), "--kv-disk", "0", "--disk-budget", "0")
    node = (*_node(path, longest(kind, 2 * topics, messages, first)), *flags)
    with running.node(*node) as ours, running.node(*node, program=("scripts.bench.variant", "lru")) as plain:
        programs: dict[str, Ours | Theirs] = {
            f"ours, {memory} MiB": Ours(ours),
            f"plain LRU, {memory} MiB": Ours(plain),
        }
        mine, theirs = run(programs, kind, 2 * topics, messages, first).values()
    return {"parked_over_lru": theirs.mean / mine.mean}


def parked(path: Path, kind: str, topics: int, messages: int, first: int) -> dict[str, object]:
    """The same topics on nodes and servers as they are by default."""
    context = longest(kind, 2 * topics, messages, first)
    slots = ("-c", str(context * topics), "-np", str(topics), "-no-kvu")
    with (
        running.node(*_node(path, context)) as ours,
        rivals.server(path, *slots, threads=THREADS) as server,
        rivals.server(path, *slots, threads=THREADS, our_kernels=True) as equal,
    ):
        programs: dict[str, Ours | Theirs] = {
            "ours": Ours(ours),
            f"llama-server, {topics} slots and its RAM cache": Theirs(server, 0),
            "the same on our kernels": Theirs(equal, 0),
        }
        mine, theirs, theirs_on_ours = run(programs, kind, 2 * topics, messages, first).values()
    return {
        "parked_over_server": theirs.mean / mine.mean,
        "parked_over_server_on_our_kernels": theirs_on_ours.mean / mine.mean,
    }


def _node(path: Path, context: int) -> tuple[str, ...]:
    """Flags of a node of ours."""
    return ("--join", "none", "--model", str(path), "--threads", str(THREADS), "--ctx", str(context), "--draft", "0")


PARTS = {"pinned": pinned, "lru": lru, "parked": parked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--topics", type=int, default=40)
    parser.add_argument(
        "--messages",
        type=int,
        default=0,
        help="of all topics; default: four each, in lru three, in parked two",
    )
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="round-robin")
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--quick", action="store_true", help="4 topics that begin with 128 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    topics, first = (4, 128) if args.quick else (args.topics, args.first)
    kinds = KINDS if args.kind == "all" else (args.kind,)
    parts = tuple(PARTS) if args.part == "all" else (args.part,)
    todo = {part: args.messages or _topics(part, topics) * MESSAGES[part] for part in parts}
    running.expect(len(kinds) * sum(_seconds(part, topics, first, n) for part, n in todo.items()))
    path = model("q8_0")
    figures: dict[str, object] = {}
    for kind in kinds:
        prefix = "zipf_" if kind == "zipf" and len(kinds) > 1 else ""
        for part, messages in todo.items():
            figures |= {prefix + key: value for key, value in PARTS[part](path, kind, topics, messages, first).items()}
    said = {f"messages_{part}": n for part, n in todo.items()}
    running.finish({**figures, "topics": topics, **said, "kind": args.kind}, as_json=args.json)


def _seconds(part: str, topics: int, first: int, messages: int) -> float:
    """How long a part takes: a beginning, and a turn."""
    fast, slow, turn = PROGRAMS[part]
    begin, count = (fast * 1.5e-3 + slow * 4e-3) * first, _topics(part, topics)
    return 20 + count * begin + max(messages - count, 0) * turn


def _topics(part: str, room: int) -> int:
    return room if part == "pinned" else 2 * room


if __name__ == "__main__":
    main()
