"""One candidate in a process of its own: the older design, for candidates.py. Speaks ready / go / done on its pipes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from node.engine.llamacpp import LlamaBackend, LlamaOptions
from node.engine.scheduler import Scheduler, job
from node.types import SamplingParams


def main() -> None:
    path, (prompt, generate, threads) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    backend = LlamaBackend(LlamaOptions(path, "one", "", sequences=1, context=1024, threads=threads))
    scheduler = Scheduler(backend, time.monotonic)
    print("ready", flush=True)
    sys.stdin.readline()
    tokens = backend.tokenize("a" * prompt)
    scheduler.submit(job("j", tokens, [1], SamplingParams(max_tokens=generate, ignore_eos=True), time.time_ns()))
    while not scheduler.idle:
        scheduler.step()
    print("done", flush=True)
    sys.stdin.readline()
    backend.close()


if __name__ == "__main__":
    main()
