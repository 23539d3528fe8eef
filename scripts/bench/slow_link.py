"""A chat whose KV is replicated over a slow link, beside the same chat on a fast one. Linux, as root (namespaces, tc).

    python scripts/bench/slow_link.py [--mbit 20] [--rounds 2] [--quick] [--json]

Two hosts, each a network namespace with a node; what each sends is limited by `tc tbf` (which lets 400 ms of it
queue) or not, in turn. A random-weight model in the shape of Qwen2.5-0.5B, Q8_0: a chat begins with 2,048 tokens, whose
KV of 25 MB takes ten seconds at 20 Mbit/s, and goes on with short turns while it is under way. If replication blocked
the chat, its turns would show it; that they are on another disk before they are answered is what they wait for, at
most 250 ms. Shown too: turns whose log was not on the peer by then, and when the peer had all of the KV.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.lan import Lan, unavailable
from chaos.swarm import Machine, Swarm, until

from node.mesh.identity import new_token
from node.v1 import generate_pb2, kvsync_pb2, kvsync_pb2_grpc, types_pb2
from scripts.bench import running
from scripts.bench.make_model import model
from scripts.bench.sync import text

PAUSE_S = 0.5  # between an answer and the next message


@dataclass
class Chat:
    """What was seen of one chat: seconds to first tokens and of whole turns, late logs, seconds until all is held."""

    first: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    late: int = 0
    behind: float = 0.0  # tokens that the peer lacked when the last turn was answered
    arrived: float = 0.0


def say(machine: Machine, topic: str, said: str, *, append: bool) -> tuple[float, float, generate_pb2.GenerateResponse]:
    """Seconds to the first token and to the end, and the answer."""
    request = generate_pb2.GenerateRequest(
        topic=topic, messages=[types_pb2.Message(role="user", content=said)], append=append, candidates=1,
        scope=generate_pb2.SCOPE_LOCAL, params=types_pb2.SamplingParams(max_tokens=16, seed=1, ignore_eos=True),
    )  # fmt: skip
    started, first = time.perf_counter(), 0.0
    for event in machine.generate.Stream(generate_pb2.StreamRequest(request=request), timeout=120):
        if not first and event.WhichOneof("event") in ("token", "candidate"):
            first = time.perf_counter() - started
        if event.WhichOneof("event") == "done":
            return first, time.perf_counter() - started, event.done
    raise AssertionError("the stream ended without its answer")


def held(machine: Machine, topic: str) -> int:
    """Tokens of a topic's snapshot on a machine's disk."""
    stub = kvsync_pb2_grpc.KVSyncStub(machine.channel)
    return int(stub.Show(kvsync_pb2.ShowRequest(topic=topic), timeout=10).snapshot_tokens)


def chat(one: Machine, two: Machine, topic: str, tokens: int, turns: int) -> Chat:
    seen = Chat()
    begun = time.monotonic()
    say(one, topic, text(tokens, 1), append=False)
    for turn in range(turns):
        time.sleep(PAUSE_S)
        first, whole, answer = say(one, topic, text(40, 2 + turn), append=True)
        seen.first.append(first)
        seen.turns.append(whole)
        seen.late += any("no peer had this turn" in w for w in answer.outcome.warnings)
    seen.behind = answer.usage.prompt_tokens - held(two, topic)
    until(lambda: held(two, topic) >= answer.usage.prompt_tokens, "the KV has arrived", within=120)
    seen.arrived = time.monotonic() - begun
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="512 tokens, three turns, one round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if reason := unavailable():
        sys.exit(reason)
    tokens, turns, rounds = (512, 3, 1) if args.quick else (2048, 8, args.rounds)
    flags = ["--model", str(model("q8_0")), "--ctx", "4096", "--threads", "1", "--replicas", "1"]
    chats: dict[str, list[Chat]] = {"slow": [], "fast": []}
    lan = Lan(2)
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as home:
        swarm = Swarm(lan, Path(home), new_token())
        try:
            one, two = swarm.machines
            swarm.start(one, *flags, "--join", "none")
            swarm.ready([one])
            swarm.start(two, *flags, "--join", f"{one.host.ip}:7421")
            swarm.ready()
            until(lambda: swarm.see_each_other(), "the nodes meet")
            for turn in range(rounds):
                for name in ("fast", "slow") if turn % 2 else ("slow", "fast"):
                    lan.limit(args.mbit if name == "slow" else 0)
                    chats[name].append(chat(one, two, f"{name} {turn}", tokens, turns))
        finally:
            swarm.close()
            lan.close()
    rows: list[list[object]] = [
        ["link", "first token, s", "longest", "turn, s", "longest", "logs late", "tokens behind", "all KV there, s"]
    ]
    middle: dict[str, float] = {}
    for name, seen in chats.items():
        first, whole = [x for c in seen for x in c.first], [x for c in seen for x in c.turns]
        middle[name] = statistics.median(whole)
        rows.append([
            f"{args.mbit:g} Mbit/s" if name == "slow" else "not limited",
            f"{statistics.median(first):.3f}", f"{max(first):.3f}", f"{middle[name]:.3f}", f"{max(whole):.3f}",
            f"{sum(c.late for c in seen)} of {len(whole)}", f"{statistics.mean(c.behind for c in seen):.0f}",
            f"{statistics.median(c.arrived for c in seen):.1f}",
        ])  # fmt: skip
    running.table(rows)
    pairs = [a / b for s, f in zip(chats["slow"], chats["fast"], strict=True)
             for a, b in zip(s.turns, f.turns, strict=True)]  # fmt: skip
    running.finish(
        {
            "turn_over_fast_link": statistics.median(pairs),
            "longest_turn_s": max(x for c in chats["slow"] for x in c.turns),
            "late": sum(c.late for c in chats["slow"]),
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
