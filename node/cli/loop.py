"""The event loop of a command, which ^C ends at once whichever of its threads the system gives the signal to.

Python runs a handler in the main thread, when that wakes. A signal that comes while the process is stopped or frozen
(^Z, a container that is paused, a laptop that sleeps) may go to one of gRPC's threads, and asyncio would sleep on: only
`loop.add_signal_handler` has it woken, not the handler of SIGINT that `asyncio.run` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`. Raises KeyboardInterrupt when interrupted."""
    with runner() as made:
        return made.run(work)


@contextlib.contextmanager
def runner() -> Iterator[asyncio.Runner]:
    """`asyncio.Runner`, as a context."""
    with asyncio.Runner() as made, _woken(made.get_loop()):
        yield made


@contextlib.contextmanager
def _woken(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Any signal wakes the loop."""
    if threading.current_thread() is not threading.main_thread():  # where Python has no handlers
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for each in (ours, theirs):
            each.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)
