"""Rounds of chaos: `python scripts/chaos [--rounds 60] [--seed 1] [--json]`. Linux, as root; needs ip, nft, tc and cc.

Each round breaks one thing, by a schedule that follows from the seed: a node killed or stopped, a cable out, the
network in two, 5 % of all packets lost, 5 Mbit/s, a wall clock up to half an hour behind or two ahead; while clients
ask random nodes, two of them with topics that they go on with, and the same request elsewhere where it failed. After
the repair it is checked that every call ended within its deadline and a second, that every answer is one that its
candidates gave, that votes are the pooled votes of the ballots that arrived, that all nodes hold each other for alive
within 5 s, that what those that hold a topic hold of it agrees, that each acknowledged turn is in it once, or else in a
branch, and that no sequence is still in use. Ends with 1 if something was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from chaos.lan import Lan, unavailable
from chaos.round import DOINGS, FLAGS, Clients, Report, play
from chaos.swarm import Swarm, until
from node.mesh.identity import new_token

HOSTS = 5


def rounds(count: int, seed: int, breaks_s: float, home: Path, patience: float = 1.0) -> Iterator[Report]:
    """Play so many rounds on five hosts, on a machine that may be `patience` times as slow as it should be."""
    rng = Random(seed)
    lan = Lan(HOSTS)
    swarm = Swarm(lan, home, new_token(), clocks=True)
    try:
        for machine in swarm.machines:
            swarm.start(machine, *FLAGS)
        swarm.ready()
        until(swarm.see_each_other, "all five are together", instead=swarm.views)
        clients = Clients(swarm.machines, seed, patience)
        try:
            todo: list[str] = []
            for _ in range(count):
                # Each kind comes once before any comes again, so that a short run has seen all.
                todo = todo or rng.sample(DOINGS, len(DOINGS))
                yield play(swarm, clients, todo.pop(), rng, rng.uniform(0.5, 1.5) * breaks_s, patience)
        finally:
            clients.close()
    finally:
        swarm.close()
        lan.close()


def main() -> int:
    """Play, print, and say whether all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--breaks", type=float, default=2.0, help="seconds for which something is broken, on average")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if reason := unavailable():
        print(f"chaos: {reason}", file=sys.stderr)
        return 1
    calls: Counter[str] = Counter()
    converged: dict[str, list[float]] = {}
    wrong = turns = branches = behind = 0
    with tempfile.TemporaryDirectory() as home:
        for i, r in enumerate(rounds(options.rounds, options.seed, options.breaks, Path(home)), 1):
            calls += r.calls
            wrong += len(r.wrong)
            turns += r.turns
            branches += r.branches
            behind += r.behind
            converged.setdefault(r.doing, []).append(r.converged_s)
            told = ", ".join(f"{n} {code}" for code, n in r.calls.most_common())
            print(
                f"{i:4} {r.doing:6} {told}; longest {r.longest_s:.1f} s; together after {r.converged_s:.2f} s, "
                f"{r.turns} turns agreed after {r.agreed_s:.2f} s",
                flush=True,
            )
            for line in r.wrong:
                print(f"     WRONG: {line}", flush=True)
    worst = {doing: round(max(times), 2) for doing, times in converged.items()}
    print(f"{sum(calls.values())} calls: {dict(calls)}; worst time until together: {worst}; wrong: {wrong}")
    print(f"{turns} acknowledged turns of topics, {branches} branches, {behind} copies behind after 5 s")
    if options.json:
        print(
            json.dumps(
                {
                    "rounds": options.rounds,
                    "calls": calls,
                    "converged_s": worst,
                    "wrong": wrong,
                    "turns": turns,
                    "branches": branches,
                    "behind": behind,
                }
            )
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
