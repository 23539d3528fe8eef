"""A node that has lost a part of its model starts again: native code waits for a machine that is gone, and nothing else
frees it. The process stays what it is to whoever started it; its memory, threads and connections are new.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

STEADY_S = 60.0  # a node that served for so long was not at fault for what happened before
MOST = 5  # losses in a row; after that whoever started the node decides
LONGEST_PAUSE_S = 8.0
# Losses in a row, for the process that comes. No CONCLAVE_ prefix: those are the names of options.
VARIABLE = "_CONCLAVE_LOSSES"


def losses(environ: Mapping[str, str]) -> int:
    """How often in a row the process before this one lost a part of its model; 0: it was started by somebody."""
    said = environ.get(VARIABLE, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 3 else 0


def counted(before: int, served_s: float) -> int:
    """Losses in a row with the one that ends a process which had `before`, and served for a time."""
    return 1 if served_s >= STEADY_S else before + 1


def pause_s(count: int) -> float:
    """How long to wait after so many: none after the first, then twice as long each time."""
    return min(2.0 ** (count - 2), LONGEST_PAUSE_S) if count > 1 else 0.0


def start(count: int) -> None:
    """Become the same command anew. Raises OSError if the system does not start it."""
    for name in os.listdir("/dev/fd"):
        # llama.cpp's connections, and files of GPU drivers: what stayed open would keep memory, here or elsewhere.
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:  # that of the listing itself
                continue
    os.environ[VARIABLE] = str(count)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
