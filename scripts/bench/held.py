"""How long it takes to find where a prompt begins, by how many topics are held.

    python scripts/bench/held.py [--quick] [--json]

Topics of 400 tokens that are parked on disk, all with one system prompt of 64 tokens (the worst case: each could be
begun from) or each with its own beginning. Asked are a next turn of a topic and the first of a new one. The rival is
what was there before: a look at every topic. Below, what a turn costs the tree: a topic taken in with its new tokens,
parked and put to disk. And what choosing those that leave a full disk costs a turn: a look at all of them, which makes
room for some turns.

Keys: `match_ms_N` and `all_ms_N` of N topics (the worst of the cases), `turn_ms_N`, `leave_ms_N`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.core.prefixes import Prefixes
from node.core.slots import MIN_SHARED, Held, Speeds, common_prefix, leave_disk, restoring
from scripts.bench.running import finish, table

TOKENS, SYSTEM, NEW = 400, 64, 42
BYTES = 12_288  # a token of Qwen2.5-0.5B's shape in f16
SPEEDS = Speeds(prefill_s=2e-3, is_measured=True)
SLACK = 1 / 64  # of the disk is made free at once (`node.engine.slots`)


def topics(count: int, *, shared: bool) -> list[Held]:
    rng = random.Random(count)
    system = tuple(rng.randrange(32_000) for _ in range(SYSTEM)) if shared else ()
    return [
        Held(
            f"t{i}",
            (*system, *(rng.randrange(32_000) for _ in range(TOKENS - len(system)))),
            False,
            bytes=TOKENS * BYTES,
            is_on_disk=True,
            interval=float(rng.randrange(1, 200)),
            used=i,
        )
        for i in range(count)
    ]


def look_at_all(held: Iterable[Held], topic: str, prompt: Sequence[int]) -> float:
    """The gain of the best beginning, by a look at every topic."""
    best = 0.0
    for each in held:
        own = each.topic == topic
        length = min(common_prefix(each.tokens, prompt), len(prompt) - 1)
        if length < (1 if own else MIN_SHARED):
            continue
        gain = length * SPEEDS.prefill_s + (SPEEDS.prefill_s / 2 if own else 0.0)
        best = max(best, gain - (0.0 if each.is_resident else restoring(each, SPEEDS)))
    return best


def timed(work: Callable[[], object], times: int) -> float:
    """Milliseconds, the median."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a thousand topics only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rng = random.Random(1)
    rows: list[list[object]] = [["ms", "held", "tree", "a look at all", "a turn's changes to the tree"]]
    figures: dict[str, object] = {}
    for count in (1000,) if args.quick else (1000, 10_000):
        for shared in (True, False):
            held = topics(count, shared=shared)
            tree = Prefixes()
            for each in held:
                tree.put(each)
            some = held[count // 2]
            new = tuple(rng.randrange(32_000) for _ in range(NEW))
            asked = {
                "next turn": (some.topic, (*some.tokens, *new)),
                "new topic": ("new", (*some.tokens[:SYSTEM], *new)),
            }

            def turn(tree: Prefixes = tree, some: Held = some, longer: Sequence[int] = (*some.tokens, *new)) -> None:
                resident = Held(some.topic, longer, True)
                parked = Held(some.topic, longer, False, bytes=some.bytes)
                for each in (
                    resident,
                    parked,
                    Held(some.topic, longer, False, bytes=some.bytes, is_on_disk=True),
                    some,
                ):
                    tree.put(each)

            for what, (topic, prompt) in asked.items():
                found = timed(lambda a=topic, b=prompt, t=tree: t.match(a, b, SPEEDS), 200)  # type: ignore[misc]
                before = timed(lambda a=topic, b=prompt, h=held: look_at_all(h, a, b), 5)  # type: ignore[misc]
                beginning = "one system prompt" if shared else "each its own"
                changes = timed(turn, 50)
                rows.append([f"{what}, {beginning}", count, f"{found:.3f}", f"{before:.1f}", f"{changes:.3f}"])
                for key, value in (("match", found), ("all", before), ("turn", changes)):
                    name = f"{key}_ms_{count}"
                    figures[name] = round(max(value, float(figures.get(name, 0.0))), 3)  # type: ignore[arg-type]
        figures[f"leave_ms_{count}"] = round(timed(lambda h=held: leave_disk(h, 1000, SPEEDS), 5) / (count * SLACK), 3)  # type: ignore[misc]
    table(rows)
    left = ", ".join(f"{v} with {k.rpartition('_')[2]}" for k, v in figures.items() if k.startswith("leave"))
    print(f"\nchoosing what leaves a full disk, ms a turn: {left}")
    finish(figures, as_json=args.json)


if __name__ == "__main__":
    main()
