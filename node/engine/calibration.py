"""What this machine does with this model, measured between loading and the first request: decode, prefill, restore.

These are first figures, so that the first decisions are right (`node.core.slots`, `node.engine.pace`); real requests
improve them. Everything together takes two seconds at most, a tenth of that with a small model, and ends at once when
somebody wants something. A model that is too slow for a part of it goes without that part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from node.core.slots import Speeds
from node.engine.backend import Backend, Row
from node.engine.pace import MEASURED_ROWS, SMALL_BATCH

LIMIT_S = 2.0  # of all of it
DECODE_STEPS = 13
DECODE_S = 0.5
MOST_ROWS = 128  # of a prompt: more does not tell more
LEAST_ROWS = 8
RESTORES = 3
Clock = Callable[[], float]


@dataclass
class Figures:
    """What was measured. `steps` are seconds of decode steps of `SMALL_BATCH` sequences or all; `speeds` None: not
    measured; `kv_bytes` a token (0: there is no KV to copy); `sample` is a copy of some KV, for its layout."""

    steps: list[float] = field(default_factory=list)
    speeds: Speeds | None = None
    kv_bytes: float = 0.0
    sample: Any = None


def measure(
    backend: Backend, is_wanted: Callable[[], bool] = lambda: True, clock: Clock = time.perf_counter
) -> Figures:
    """Measure as far as it is `is_wanted` and there is time. Leaves no sequence behind."""
    started = clock()
    sequences = min(SMALL_BATCH, backend.info.sequences)
    took: list[float] = []
    try:
        for position in range(min(DECODE_STEPS, backend.info.context - 1)):
            before = clock()
            backend.decode([Row(0, position, sequence, wants_logits=True) for sequence in range(sequences)])
            took.append(clock() - before)
            if clock() - started > DECODE_S or not is_wanted():
                break
        found = Figures(took[1:] or took, sample=backend.export(0))  # the first one warms up
    finally:
        for sequence in range(sequences):
            backend.drop(sequence)
    if not is_wanted():
        return found
    try:
        _read(backend, found, len(took), sequences, started + LIMIT_S, is_wanted, clock)
    finally:
        backend.drop(0)
    return found


def _read(
    backend: Backend,
    found: Figures,
    short: int,
    sequences: int,
    until: float,
    is_wanted: Callable[[], bool],
    clock: Clock,
) -> None:
    """Prefill, and with what that left behind, restore."""
    row_s = min(found.steps) / sequences  # of a prompt a row takes less than in a small batch
    length, prefill_s = 0, 0.0
    for rows in _sizes(min(MOST_ROWS, backend.info.batch, backend.info.context - 1)):
        if rows * row_s > until - clock() or not is_wanted():
            break
        backend.drop(0)
        before = clock()
        backend.decode([Row(0, i, 0, wants_logits=i == rows - 1) for i in range(rows)])
        seconds = clock() - before
        row_s = seconds / rows
        # Small prompts take longer a token than those that count.
        length, prefill_s = rows, row_s
        if rows >= MEASURED_ROWS and seconds > until - clock():
            break
    if not length:
        return
    found.speeds = Speeds(prefill_s=prefill_s, is_measured=True)
    state = backend.export(0)
    small, large = getattr(found.sample, "nbytes", 0), getattr(state, "nbytes", 0)
    if not large or length <= short or large <= small:
        return
    found.kv_bytes = (large - small) / (length - short)
    times: dict[int, float] = {}
    for size, copy in ((small, found.sample), (large, state)):
        for _ in range(RESTORES):
            backend.drop(0)
            before = clock()
            if not backend.restore(0, copy):
                return
            times[size] = min(times.get(size, 1.0), clock() - before)
    by_byte = max(times[large] - times[small], 0.0) / (large - small) or times[large] / large
    found.speeds = Speeds(
        prefill_s=prefill_s,
        restore_s=max(times[small] - small * by_byte, 0.0),
        restore_s_per_byte=by_byte,
        is_measured=True,
    )


def _sizes(most: int) -> Iterator[int]:
    """Lengths of prompts, each four times the one before, `most` the last."""
    rows = LEAST_ROWS
    while rows < most:
        yield rows
        rows *= 4
    if most > 0:
        yield most
