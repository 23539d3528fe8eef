"""How fast the processor reads main memory, which decides how fast it writes tokens: each takes all weights once.

What was measured is kept beside the nodes' data, by machine and threads (a home may be shared by several machines), and
the most of it counts (`node.core.peak`): a plan, `doctor` and the start of a node then say the same, and a busy moment
does not decide which gigabytes somebody downloads.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from node import disk
from node.core.peak import Peak, peak, worn
from node.errors import InvalidRequest
from node.hardware.cpu import Cpu
from node.home import home, private_dir

KEPT = "bandwidth.json"
MOST_KEPT = 16  # machines, and numbers of threads
_MOST_BYTES = 1 << 16  # of the file
_MOST_BYTES_PER_S = 1e13  # no machine reads that much: who says so is not believed
ROUNDS = 3  # of measuring, where nothing is kept: apart in time, as other programs come and go
APART_S = 0.2

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


def known_bytes_per_s(
    cpu: Cpu,
    threads: int = 0,
    *,
    environ: Mapping[str, str] | None = None,
    reads: Callable[[int], float] = read_bytes_per_s,
    now: Callable[[], float] = time.time,
    makes_folder: bool = True,
) -> float:
    """The most that was measured on this machine with so many threads (0: the processor's own), and now: bytes a
    second, 0 if it cannot be measured. What cannot be kept is measured anew each time; without `makes_folder` it is
    kept only where there is one for it already."""
    threads = threads or cpu.threads
    file = home(environ).data / KEPT
    table = _read(file)
    key = f"{socket.gethostname()}, {cpu.name}, {cpu.memory_bytes >> 30} GiB, {threads} threads"
    found = table.get(key)
    for each in range(1 if found else ROUNDS):
        time.sleep(APART_S if each else 0.0)
        measured = reads(threads)
        if measured > 0:
            found = peak(found, measured, now())
    if found is None:
        return 0.0
    if found != table.get(key) and (makes_folder or file.parent.is_dir()):
        table.pop(key, None)
        _write(file, {**dict(list(table.items())[1 - MOST_KEPT :]), key: found})
    return worn(found, now())


def _read(file: Path) -> dict[str, Peak]:
    """What is kept; nothing of a file that is broken."""
    try:
        with file.open("rb") as f:
            said = json.loads(f.read(_MOST_BYTES))
        table = {str(key): Peak(float(each["value"]), float(each["at"])) for key, each in said.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return {key: p for key, p in table.items() if 0 < p.value < _MOST_BYTES_PER_S and math.isfinite(p.at)}


def _write(file: Path, table: Mapping[str, Peak]) -> None:
    """A disk that takes nothing is no reason to fail."""
    with contextlib.suppress(OSError, InvalidRequest):
        private_dir(file.parent)
        disk.remember(file, {key: asdict(each) for key, each in table.items()})
