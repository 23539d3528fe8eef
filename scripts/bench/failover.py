"""The first token after a coordinator's death: on another node, against the node that died and against a cold start.

    python scripts/bench/failover.py [--topics 5] [--tokens 2048] [--quick] [--json]

Two nodes on loopback, a random-weight model in the shape of Qwen2.5-0.5B, Q8_0; topics of 2,048 tokens are begun on the
first, which replicates them. Then, topic by topic: a turn of 42 tokens on the first node (warm). The first node is
killed (SIGKILL). The same turn goes to the second, which never computed anything of these topics: its first token comes
from KV on its disk (checked, put together, restored, probed). Then a conversation as long as the topic, new to the
second node, computed from nothing (cold). `cached_tokens` shows that each turn was what it is said to be.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.v1 import generate_pb2, types_pb2
from scripts.bench import running
from scripts.bench.make_model import model
from scripts.bench.sync import met, text, until_held

TURN = 16  # tokens of the message; the template's make 42 of it


def first_token(node: running.Node, topic: str, said: str, *, append: bool) -> tuple[float, int, int]:
    """Seconds to the first token, prompt tokens, and how many of them were held."""
    request = generate_pb2.GenerateRequest(
        topic=topic, messages=[types_pb2.Message(role="user", content=said)], append=append, candidates=1,
        scope=generate_pb2.SCOPE_LOCAL, params=types_pb2.SamplingParams(max_tokens=1, seed=1),
    )  # fmt: skip
    started = time.perf_counter()
    first = 0.0
    for event in node.generate.Stream(generate_pb2.StreamRequest(request=request), timeout=600):
        if not first and event.WhichOneof("event") in ("token", "candidate"):
            first = time.perf_counter() - started
    return first, event.done.usage.prompt_tokens, event.done.usage.cached_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--quick", action="store_true", help="2 topics of 512 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    topics, tokens = (2, 512) if args.quick else (args.topics, args.tokens)
    flags = ["--model", str(model("q8_0")), "--ctx", "4096", "--kv-memory", "4096"]
    warm, after, cold, prompts = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="conclave-bench-") as home:
        where = Path(home)
        with running.node(*flags, home=where) as one, running.node(*flags, home=where) as two:
            met(one, two)
            for i in range(topics):
                first_token(one, f"t{i}", text(tokens, i), append=False)
            for i in range(topics):  # others came between: what is warm is in memory, not in the context
                seconds, prompt, cached = first_token(one, f"t{i}", text(TURN, 100 + i), append=True)
                if prompt - cached > 100:
                    sys.exit(f"warm: {cached} of {prompt} tokens were held")
                warm.append(seconds)
                prompts.append(prompt)
            for i, prompt in enumerate(prompts):  # on a busy machine its KV is taken seconds after an answer
                until_held(one, f"t{i}", prompt)
                until_held(two, f"t{i}", prompt)
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
            for i in range(topics):
                seconds, prompt, cached = first_token(two, f"t{i}", text(TURN, 200 + i), append=True)
                if prompt - cached > 150:
                    sys.exit(f"after the death: {cached} of {prompt} tokens were held")
                after.append(seconds)
                seconds, _, cached = first_token(two, f"new{i}", text(prompt - 10, 300 + i), append=False)
                if cached > 100:
                    sys.exit(f"cold: {cached} tokens were held")
                cold.append(seconds)
    running.table([
        ["first token, s", "median", "all"],
        *([name, f"{statistics.median(v):.3f}", " ".join(f"{x:.3f}" for x in v)]
          for name, v in (("warm, on the first node", warm), ("after its death, elsewhere", after), ("cold", cold))),
    ])  # fmt: skip
    running.finish(
        {
            "first_token_over_warm": statistics.median(a / w for a, w in zip(after, warm, strict=True)),
            "first_token_over_cold": statistics.median(a / c for a, c in zip(after, cold, strict=True)),
            "topics": topics,
            "tokens": tokens,
        },
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
