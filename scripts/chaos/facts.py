"""Nodes are killed and frozen while people tell them facts: what was acknowledged stays, and is remembered.

    python scripts/chaos/facts.py [--rounds 100] [--nodes 5] [--seed 1] [--json]

Real processes with the bundled model on loopback, one mesh. Each round: a node is asked for a fact that was told; then
a turn goes to the node that holds the topic, which is killed with SIGKILL, or frozen (SIGSTOP) until its peers have
buried it, at a random moment of that turn; the client asks the other nodes with the same request id, as `node.client`
does. Then: the fact is recalled elsewhere if it was before; the node comes back; all nodes that hold the topic have the
same version within 5 s. In the end each acknowledged turn is in its topic, or in a branch of it, exactly once.

Frozen nodes are what one machine has for a partition: such a node goes on from where it was, and learns what it missed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grpc

from node.v1 import generate_pb2, kvsync_pb2, kvsync_pb2_grpc, types_pb2
from scripts.bench import running

NAMES = ["Argo", "Nina", "Bounty", "Vega", "Orion", "Luna", "Hera", "Juno"]
ROUNDS_A_TOPIC = 6  # a sequence of the bundled model holds 2,048 tokens
CONVERGE_S = 5.0
BURIED_S = 6.0


class Place:
    """A node that can be killed and started again with the same data."""

    def __init__(self, home: Path, index: int) -> None:
        self._home, self._index = home, index
        self._stack = contextlib.ExitStack()
        self.node: running.Node
        self.start()

    def start(self) -> None:
        flags = ["--data-dir", str(self._home / f"data{self._index}"), "--threads", "1", "--slots", "4"]
        self.node = self._stack.enter_context(running.node(*flags, home=self._home))

    def kill(self) -> None:
        self.node.process.send_signal(signal.SIGKILL)
        self.node.process.wait()
        self._stack.close()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.node.process.send_signal(signal.SIGCONT)
        self._stack.close()


def ask(node: running.Node, topic: str, said: str, id: str, *, append: bool = True) -> generate_pb2.GenerateResponse:
    return node.generate.Generate(
        generate_pb2.GenerateRequest(
            topic=topic,
            messages=[types_pb2.Message(role="user", content=said)],
            append=append,
            candidates=1,
            scope=generate_pb2.SCOPE_LOCAL,
            params=types_pb2.SamplingParams(temperature=0.0, max_tokens=40),
            request_id=id,
        ),
        timeout=10,
    )


def version(node: running.Node, topic: str) -> tuple[int, int, str] | None:
    for t in node.status().topics:
        if t.topic == topic:
            return t.version.epoch, t.version.turn, t.version.node_id
    return None


def everyone_sees_everyone(places: list[Place], within: float = 60.0) -> None:
    end = time.monotonic() + within
    while any(sum(n.state == "alive" for n in p.node.status().nodes) < len(places) for p in places):
        if time.monotonic() > end:
            sys.exit("the nodes did not meet again")
        time.sleep(0.05)


class Story:
    """What was told and acknowledged so far."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        self.ids = 0

    def tell(self, places: list[Place], topic: str, said: str, *, append: bool = True) -> generate_pb2.GenerateResponse:
        """A turn at the first of these nodes that answers, with one request id for all attempts."""
        self.ids += 1
        for _ in range(20):
            for place in places:
                try:
                    answer = ask(place.node, topic, said, f"r{self.ids}", append=append)
                except grpc.RpcError:
                    continue
                self.acknowledged.setdefault(topic, []).append(said)
                return answer
            time.sleep(0.2)
        sys.exit(f"nobody answered {said!r}")


def play(places: list[Place], rng: random.Random, rounds: int) -> dict[str, Any]:
    story, found = Story(), Counter[str]()
    converged: list[float] = []
    topic = name = ""
    for i in range(rounds):
        if i % ROUNDS_A_TOPIC == 0:
            topic, name = f"boat{i}", rng.choice(NAMES)
            holder = rng.choice(places)
            story.tell([holder], topic, f"My boat is called {name}.", append=False)
        victim = holder
        others = [p for p in places if p is not victim]
        rng.shuffle(others)
        knew = name in story.tell([victim], topic, "What is my boat called?").text
        freezes = rng.random() < 0.3
        timer = threading.Timer(rng.random() * 0.15, end, (victim, freezes))
        timer.start()
        story.tell([victim, *others], topic, f"note {i}")
        timer.join()
        recalled = name in story.tell(others, topic, "What is my boat called?").text
        found["recalled" if recalled else "forgotten" if knew else "never known"] += 1
        if freezes:
            time.sleep(BURIED_S)
            victim.node.process.send_signal(signal.SIGCONT)
        else:
            victim.start()
        everyone_sees_everyone(places)
        started = time.monotonic()
        while len({v for p in places if (v := version(p.node, topic)) is not None}) > 1:
            if time.monotonic() - started > 30:
                sys.exit(f"round {i}: versions differ: {[version(p.node, topic) for p in places]}")
            time.sleep(0.02)
        converged.append(time.monotonic() - started)
        holder = others[0]
        if (i + 1) % 10 == 0:
            print(f"{i + 1} rounds: {dict(found)}, slowest agreement {max(converged):.2f} s", flush=True)
    lost, twice = [], []
    for each, said in story.acknowledged.items():
        shown = [s for p in places if (s := show(p, each)) is not None]
        kept = [Counter(m.content for m in s.messages if m.role == "user") for s in shown]
        branches = Counter(m.content for s in shown for b in s.branches for m in b.messages)
        for text, count in Counter(said).items():
            best = max(k[text] for k in kept)
            if best < count and not branches[text]:
                lost.append((each, text))
            if text.startswith("note") and best > 1:
                twice.append((each, text))
    return {
        "rounds": rounds, **found, "acknowledged": sum(map(len, story.acknowledged.values())), "lost": len(lost),
        "twice": len(twice), "slowest_agreement_s": max(converged), "median_agreement_s": statistics.median(converged),
        "which": [*lost, *twice][:5],
    }  # fmt: skip


def end(victim: Place, freezes: bool) -> None:
    if freezes:
        victim.node.process.send_signal(signal.SIGSTOP)
    else:
        victim.kill()


def show(place: Place, topic: str) -> kvsync_pb2.ShowResponse | None:
    try:
        return kvsync_pb2_grpc.KVSyncStub(place.node.channel).Show(kvsync_pb2.ShowRequest(topic=topic), timeout=10)
    except grpc.RpcError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conclave-chaos-") as home, contextlib.ExitStack() as stack:
        places = []
        for i in range(args.nodes):
            places.append(Place(Path(home), i))
            stack.callback(places[-1].close)
        everyone_sees_everyone(places)
        figures = play(places, random.Random(args.seed), args.rounds)
    for key, value in figures.items():
        print(f"{key:22} {value}")
    running.finish(figures, as_json=args.json)
    if figures["lost"] or figures["twice"] or figures.get("forgotten") or figures["slowest_agreement_s"] > CONVERGE_S:
        sys.exit("something was lost, doubled or forgotten, or agreement took too long")


if __name__ == "__main__":
    main()
