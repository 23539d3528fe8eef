"""How fast the processor reads main memory, which decides how fast it writes tokens: each takes all weights once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 128 << 20  # more than caches hold
PASSES = 10  # the best counts: other programs make one slower, nothing makes one faster
PAUSE_S = 0.03  # between two: what another program does in one moment it may not do in the next


def read_bytes_per_s(threads: int) -> float:
    """Bytes a second, by reading memory on so many threads for some 0.4 s; 0 if there is no memory to do it with."""
    threads = max(threads, 1)
    try:
        rows = np.ones((threads, BYTES // threads // 4), np.float32)
    except MemoryError:
        return 0.0
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for each in range(PASSES):
            time.sleep(PAUSE_S if each else 0.0)
            started = time.perf_counter()
            list(pool.map(np.max, rows))
            best = max(best, rows.nbytes / (time.perf_counter() - started))
    return best
