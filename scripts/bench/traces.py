"""Traces of messages over topics, as JSON lines: round robin and Zipf.

    python scripts/bench/traces.py --kind zipf --topics 40 --messages 160 [--seed 1]

Each line is {"topic": i, "text": …}; the text has as many bytes as tokens are wanted: one token a byte, as in the model
of make_model.py.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

LETTERS = "abcdefgijklmnopqrsuvwxyz "  # no "th", which is one token


@dataclass(frozen=True)
class Turn:
    """One message of a topic."""

    topic: int
    text: str


def trace(kind: str, topics: int, messages: int, first: int, tokens: int, seed: int = 1) -> Iterator[Turn]:
    """`messages` turns; a topic's first message has `first` tokens, the later ones `tokens`."""
    rng = random.Random(seed)
    seen: set[int] = set()
    weights = [1 / (i + 1) for i in range(topics)]
    for i in range(messages):
        topic = i % topics if kind == "round-robin" else rng.choices(range(topics), weights)[0]
        size = tokens if topic in seen else first
        seen.add(topic)
        yield Turn(topic, "".join(rng.choice(LETTERS) for _ in range(size)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["round-robin", "zipf"], default="round-robin")
    parser.add_argument("--topics", type=int, default=40)
    parser.add_argument("--messages", type=int, default=160)
    parser.add_argument("--first", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for turn in trace(args.kind, args.topics, args.messages, args.first, args.tokens, args.seed):
        print(json.dumps(asdict(turn)))


if __name__ == "__main__":
    main()
