"""Ports of which a test knows who has them: between finding a free one and using it another takes it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"
BELOW = range(20000, 32000)  # of those that Linux and macOS give to whoever asks for any


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port where nobody listens, and nobody can: it is bound here."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield int(bound.getsockname()[1])


def spare() -> int:
    """A free port that only who names it can take."""
    while True:
        port = random.choice(BELOW)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
