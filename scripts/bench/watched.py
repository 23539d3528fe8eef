"""A node whose memory can be counted, for scripts/bench/leaks.py.

    python -m scripts.bench.watched FILE BYTES FLAGS…

On SIGUSR1 it collects its garbage and writes to FILE how many bytes it holds by the allocators' own count: what malloc
has given out (glibc's mallinfo2, all arenas and what was mapped for a caller), and Python's blocks of up to 512 bytes,
which Python cuts from memory of its own. Free room between them, which is what resident memory is mostly off by, is in
neither. It keeps BYTES of each request on purpose (0: none), to see that a leak of that size would be found.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.cli import main
from node.coordinator import Coordinator

_BYTES_HEADER = sys.getsizeof(b"")


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3)): `hblkhd` are bytes that were mapped, `uordblks` all others that are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def held(mallinfo2: Callable[[], Any]) -> int:
    """Bytes that are in use in this process."""
    gc.collect()
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd) + _blocks()


def _blocks() -> int:
    """Bytes of Python's own blocks in use: it tells of them on the standard error only."""
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(before, 2)
            os.close(before)
        said.seek(0)
        found = re.search(rb"# bytes in allocated blocks\s*=\s*([\d,]+)", said.read())
    return int(found[1].replace(b",", b"")) if found else 0


def _keep(size: int) -> None:
    kept: list[bytes] = []
    stream = Coordinator.stream

    def leaking(*args: Any, **named: Any) -> Any:
        kept.append(bytes(size - _BYTES_HEADER))
        return stream(*args, **named)

    Coordinator.stream = leaking  # type: ignore[method-assign]


def run() -> int:
    """The node, with what was asked for."""
    place, size = Path(sys.argv[1]), int(sys.argv[2])
    del sys.argv[1:3]
    mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33 and newer
    mallinfo2.restype = _Mallinfo2

    def tell(*_: object) -> None:
        new = place.with_suffix(".new")
        new.write_text(str(held(mallinfo2)))
        new.rename(place)

    signal.signal(signal.SIGUSR1, tell)
    if size:
        _keep(size)
    return main()


if __name__ == "__main__":
    sys.exit(run())
