"""What the mesh costs and gives: a vote's overhead by number of nodes, two nodes against one, joining, noticing deaths.

    python scripts/bench/mesh.py [--part all] [--nodes 2,8,32] [--rounds 40] [--model bundled] [--quick] [--json]

Overhead: the fake backend as fast as it goes, one candidate a node, every ballot waited for; beside it the same number
of candidates on the node that is asked, alone, in turns with it (A B A B). All nodes share this machine's cores. The
floor is that of `wire_floor.py`: a bare gRPC stream to as many servers. And what a node costs that has nothing to do.
Where each node has a machine of its own, the cores are not shared; what a vote takes then is in the processor time of
the node that is asked, for each peer, and of a peer.
Two nodes against one: the bundled model, or `--model PATH.gguf`, each node pinned to a core, 32 candidates of 48 tokens
(`--tokens`, `--candidates`). Both run all the time and are asked in turn, the one node on the first core and on the
second, and who asks is on the core that the one node does not have. Of the processor time: what the one node takes for
a vote, over what the busier of the two takes. Beside it the most that two nodes could reach: what the one node takes
for all candidates over what it takes for half of them, as a batch of 32 costs less than two of 16. Joining and dying:
eight hosts on a switch (network namespaces, as root; left out elsewhere), mDNS alone; a host is dead when all others
hold it for dead after its cable is out, so that no connection is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from chaos.lan import Lan, unavailable
from chaos.swarm import Swarm, until

from node.mesh.identity import new_token
from node.v1 import generate_pb2, types_pb2
from scripts.bench import running
from scripts.bench.wire_floor import floor

IDLE_S = 5.0
FAKE = ("--backend", "fake", "--model", "fake:answers=answer: 42", "--slots", "64")


def ask(node: running.Node, candidates: int, *, local: bool = False, tokens: int = 0) -> float:
    """Seconds of one request, which must have had all of its candidates, on as many nodes as there should be."""
    request = generate_pb2.GenerateRequest(
        messages=[types_pb2.Message(role="user", content="What is 6 * 7?")],
        candidates=candidates,
        strategy="quality",  # no early stop
        scope=generate_pb2.SCOPE_LOCAL if local else generate_pb2.SCOPE_MESH,
        params=types_pb2.SamplingParams(max_tokens=tokens, ignore_eos=bool(tokens)),
    )
    started = time.perf_counter()
    answer = node.generate.Generate(request, timeout=120)
    took = time.perf_counter() - started
    assert answer.outcome.finished == candidates, answer.outcome
    return took


@contextlib.contextmanager
def mesh(count: int, *flags: str, cores: Sequence[int] = ()) -> Iterator[list[running.Node]]:
    """So many nodes that see each other, each pinned to its core if there are `cores`."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conclave-bench-")))
        nodes = []
        for i in range(count):
            cpus = cores[i : i + 1]
            nodes.append(stack.enter_context(running.node(*flags, "--http-port", "0", home=home, cpus=cpus)))
        end = time.monotonic() + 60
        while any(sum(n.state == "alive" for n in node.status().nodes) < count for node in nodes):
            if time.monotonic() > end:
                sys.exit("the nodes did not find each other")
            time.sleep(0.1)
        time.sleep(1 + count / 8)  # until the news has been told
        yield nodes


def cpu(nodes: Sequence[running.Node]) -> list[float]:
    """Milliseconds of the processor that each node has used."""
    return [running.cpu_ms(node.process.pid) for node in nodes]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds of a vote over the mesh and on one node, and the median of the differences of pairs; milliseconds of
    the processor for each peer, at the node that is asked and at the peer; and what a node takes that has nothing to
    do, in percent of a core."""

    mesh: float
    one: float
    extra: float
    asker: float
    peer: float
    idle: float


def overhead(count: int, rounds: int) -> Overhead:
    """What a vote over so many nodes takes."""
    with mesh(count, *FAKE) as nodes:
        before = cpu(nodes)
        time.sleep(IDLE_S)
        idle = [(now - was) / IDLE_S for now, was in zip(cpu(nodes), before, strict=True)]  # ms a second
        for _ in range(5):
            ask(nodes[0], count)
            ask(nodes[0], count, local=True)
        pairs = [(ask(nodes[0], count) * 1e3, ask(nodes[0], count, local=True) * 1e3) for _ in range(rounds)]

        def spent(candidates: int) -> list[float]:
            """Milliseconds of each node's processor a vote, beyond what it takes when it has nothing to do."""
            started, before = time.monotonic(), cpu(nodes)
            for _ in range(rounds):
                ask(nodes[0], candidates, local=candidates == 1)
            spare = time.monotonic() - started
            each = zip(cpu(nodes), before, idle, strict=True)
            return [(now - was - i * spare) / rounds for now, was, i in each]

        asker, *peers = spent(count)
        own = spent(1)[0]
    a, b = zip(*pairs, strict=True)
    return Overhead(
        statistics.median(a),
        statistics.median(b),
        statistics.median(x - y for x, y in pairs),
        (asker - own) / (count - 1),
        statistics.median(peers),
        statistics.median(idle) / 10,
    )


@dataclass(frozen=True, slots=True)
class Gain:
    """Candidates a second of two nodes over those of one, by the clock and by the busier one's processor; and the same
    of the one node with half of the candidates, which is the most that two can reach."""

    clock: float
    processor: float
    most_clock: float
    most_processor: float


def two_over_one(rounds: int, tokens: int, name: str, candidates: int) -> list[Gain]:
    """What a second node gives, pair by pair."""
    ratios = []
    flags = ("--model", name, "--threads", "1", "--early-stop", "off")
    whole = os.sched_getaffinity(0)
    cores = sorted(whole)[:2]
    with contextlib.ExitStack() as stack:
        two = stack.enter_context(mesh(2, *flags, cores=cores))
        alone = [stack.enter_context(mesh(1, *flags, cores=(core,))) for core in cores]

        def vote(nodes: Sequence[running.Node], count: int = candidates) -> tuple[float, float]:
            before = cpu(nodes)
            took = ask(nodes[0], count, tokens=tokens)
            return took, max(now - was for now, was in zip(cpu(nodes), before, strict=True))

        for nodes in (two, *alone):
            ask(nodes[0], candidates, tokens=4)
            vote(nodes)
        try:
            for i in range(2 * rounds):
                os.sched_setaffinity(0, {cores[1 - i % 2]})
                (one_s, one_cpu), (two_s, two_cpu) = vote(alone[i % 2]), vote(two)
                half_s, half_cpu = vote(alone[i % 2], candidates // 2)
                ratios.append(Gain(one_s / two_s, one_cpu / two_cpu, one_s / half_s, one_cpu / half_cpu))
        finally:
            os.sched_setaffinity(0, whole)
    return ratios


def joins_and_deaths(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a node's start until all hold it for alive, and from a pulled cable until all hold it for dead."""
    joins, deaths = [], []
    with tempfile.TemporaryDirectory() as home:
        lan = Lan(8)
        swarm = Swarm(lan, Path(home), new_token())
        flags = ("--backend", "fake", "--http-port", "0")
        try:
            *others, mover = swarm.machines
            for machine in others:
                swarm.start(machine, *flags)
            swarm.ready(others)
            until(lambda: swarm.see_each_other(others), "seven together")
            for _ in range(rounds):
                swarm.start(mover, *flags)
                swarm.ready([mover])
                until(swarm.see_each_other, "eight together")
                joins.append(time.monotonic() - mover.started)
                time.sleep(1)
                lan.link(mover.host, up=False)
                deaths.append(until(lambda: all(m.state_of(mover.id) == "dead" for m in others), "it is dead"))
                assert mover.process is not None
                mover.process.kill()
                mover.process.wait()
                lan.link(mover.host, up=True)
        finally:
            swarm.close()
            lan.close()
    return joins, deaths


def _overheads(counts: Sequence[int], rounds: int) -> dict[str, object]:
    rows, over, floors, cpus = [], {}, {}, {}
    for count in counts:
        found, least = overhead(count, rounds), floor(count, max(rounds, 10))
        floors[str(count)], over[str(count)] = round(least.round, 2), round(found.extra, 2)
        cpus[str(count)] = [round(ms, 3) for ms in (found.asker, found.peer, least.client, least.server)]
        rows.append(
            [count, *(f"{ms:.1f}" for ms in (found.mesh, found.one, found.extra))]
            + [f"{ms / count:.2f}" for ms in (found.extra, least.round)]
            + [f"{found.asker:.2f} ({least.client:.2f})", f"{found.peer:.2f} ({least.server:.2f})", f"{found.idle:.1f}"]
        )
    head = (
        "nodes",
        "over the mesh, ms",
        "on one node, ms",
        "extra, ms",
        "extra a node, ms",
        "floor a node, ms",
        "processor of who asks a peer, ms (floor)",
        "of a peer, ms (floor)",
        "idle, % of a core",
    )
    running.table([head, *rows])
    return {"overhead_ms": over, "floor_ms": floors, "cpu_ms": cpus}


def _gains(rounds: int, tokens: int, model: str, candidates: int) -> dict[str, object]:
    gains = two_over_one(rounds, tokens, model, candidates)
    print(f"\ntwo nodes over one, candidates a second: {' '.join(f'{g.clock:.2f}' for g in gains)}")
    print(f"the same of the processor: {' '.join(f'{g.processor:.2f}' for g in gains)}")
    print(f"one node with half of them: {' '.join(f'{g.most_clock:.2f}' for g in gains)}")
    print(f"the same of the processor: {' '.join(f'{g.most_processor:.2f}' for g in gains)}")
    return {
        "two_nodes_over_one": statistics.median(g.clock for g in gains),
        "two_nodes_over_one_cpu": statistics.median(g.processor for g in gains),
        "two_nodes_most": statistics.median(g.most_clock for g in gains),
        "two_nodes_most_cpu": statistics.median(g.most_processor for g in gains),
    }


def _joins(rounds: int) -> dict[str, object]:
    if reason := unavailable():
        print(f"joining and dying were not measured: {reason}")
        return {}
    joins, deaths = joins_and_deaths(rounds)
    print(f"joining, s: {' '.join(f'{t:.2f}' for t in joins)}; noticing: {' '.join(f'{t:.2f}' for t in deaths)}")
    return {"join_s": statistics.median(joins), "detect_s": statistics.median(deaths)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=("all", "overhead", "two", "join"))
    parser.add_argument("--nodes", default="2,8,32")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--model", default="bundled", help="for two nodes against one")
    parser.add_argument("--tokens", type=int, default=0, help="of a candidate, for two nodes against one; 0: 48")
    parser.add_argument("--candidates", type=int, default=32, help="for two nodes against one")
    parser.add_argument("--quick", action="store_true", help="2 and 8 nodes, few rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, object] = {}
    if args.part in ("all", "overhead"):
        counts = [2, 8] if args.quick else [int(n) for n in args.nodes.split(",")]
        figures |= _overheads(counts, 10 if args.quick else args.rounds)
    if args.part in ("all", "two"):
        tokens = args.tokens or (24 if args.quick else 48)
        figures |= _gains(3 if args.quick else 10, tokens, args.model, args.candidates)
    if args.part in ("all", "join"):
        figures |= _joins(2 if args.quick else 5)
    running.finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
