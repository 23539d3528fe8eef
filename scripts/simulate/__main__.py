"""Membership at scale: `python scripts/simulate [--nodes 8,32,100,1000] [--seeds 3] [--json]`.

For each number of nodes, with our settings and with those of memberlist's LAN profile under the same rules: how long
until the first and until every node holds a silent one for dead; who is falsely suspected or held for dead while 5 % of
all messages are lost; messages a node sends each second in peace and while a death is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from node.core.members import Settings  # noqa: E402
from simulate.network import Network  # noqa: E402

LOSS = 0.05
QUIET_S = 10.0
# DefaultLANConfig of hashicorp/memberlist: ProbeInterval 1 s, ProbeTimeout 500 ms, IndirectChecks 3, SuspicionMult 4,
# SuspicionMaxTimeoutMult 6, RetransmitMult 4, GossipInterval 200 ms, GossipNodes 3; both times scale with log10(n).
# What it has beside these rules (a TCP ping as fallback, push/pull of all states each 30 s) is not simulated.
MEMBERLIST = Settings(probe_s=1.0, indirect=3, suspicion_min_s=4.0, suspicion_max_s=24.0, witnesses=2, retransmit=4)
PROFILES = {"ours": Settings(), "memberlist LAN": MEMBERLIST}


def measure(n: int, settings: Settings, seeds: int, lossy_s: float) -> dict[str, float]:
    """The figures of one mesh size; times in seconds, rates a node."""
    first, last, busy, quiet = [], [], [], []
    for seed in range(seeds):
        network = Network(n, seed, settings=settings)
        network.run(QUIET_S)
        quiet.append(network.sent / n / QUIET_S)
        sent = network.sent
        times = network.detection(network.now + seed / 10)
        first.append(times[0])
        last.append(times[1])
        busy.append((network.sent - sent) / n / (network.now - QUIET_S))
    lossy = Network(n, seeds, LOSS, settings)
    lossy.run(lossy_s)
    hours = n * (n - 1) * lossy_s / 3600  # each node watches all others
    return {
        "first_s": statistics.median(first),
        "all_s": statistics.median(last),
        "worst_s": max(last),
        "messages_quiet": statistics.median(quiet),
        "messages_death": statistics.median(busy),
        "messages_lossy": lossy.sent / n / lossy_s,
        "false_deaths": len(lossy.died),
        "false_suspicions_pair_hour": lossy.suspected / hours,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="8,32,100,1000")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lossy", type=float, default=60.0, help="simulated seconds with 5 %% loss")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    print("nodes  settings        first    all  worst   msg/s  on death  at 5 % loss  false deaths  suspicions")
    for n in map(int, options.nodes.split(",")):
        for name, settings in PROFILES.items():
            f = measure(n, settings, options.seeds, options.lossy)
            found.setdefault(str(n), {})[name] = f
            print(
                f"{n:5}  {name:14} {f['first_s']:6.2f} {f['all_s']:6.2f} {f['worst_s']:6.2f}  "
                f"{f['messages_quiet']:6.1f}  {f['messages_death']:8.1f}  {f['messages_lossy']:11.1f}"
                f"  {f['false_deaths']:12.0f}  {f['false_suspicions_pair_hour']:10.3f}",
                flush=True,
            )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
