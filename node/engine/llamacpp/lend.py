"""The child process that lends this machine's memory: llama.cpp's RPC server for one borrower, and nothing else.

`python -m node.engine.llamacpp.lend FD BYTES THREADS`. The server trusts whoever it talks to, and native code that
trusts has holes: so it is a process of its own, with a limit on its memory, and it ends with its connection. It would
listen on a port of loopback. It may do so only until this process itself has connected, some milliseconds; then the
port is closed and the connection is handed over FD (a Unix socket) to the node. Whoever else gets a connection in the
meantime ends the process. It also ends when the node does, however that ends: FD is closed then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

WITHIN_S = 20.0
POLL_S = 0.001
# Beside what is lent: stacks of threads, graphs, messages on their way.
OWN_BYTES = 256 << 20
INTRUDER = 4


def main() -> int:
    """Serve until the connection ends."""
    control, lent, threads = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    control.set_inheritable(False)
    threading.Thread(target=_end_with, args=(control,), daemon=True).start()
    os.environ["GGML_RPC_NO_RDMA"] = "1"  # or two nodes with such cards would leave the connection that is encrypted
    from node.engine.llamacpp import devices, native

    native.set_up()
    device = devices.by_type(devices.GPU) or devices.by_type(devices.CPU)
    listed = (ctypes.c_void_p * 1)(device)
    _limit(lent + OWN_BYTES)
    threading.Thread(target=_hand_over, args=(control,), daemon=True).start()
    devices.serve("127.0.0.1:0", threads, listed)  # until its listener is shut down and its connection has ended
    return 0


def _end_with(control: socket.socket) -> None:
    """The node never writes: what can be read is its end."""
    with contextlib.suppress(OSError):
        control.recv(1)
    os._exit(0)


def _limit(extra: int) -> None:
    """What would be allocated beyond is refused (Linux counts all private memory; elsewhere there is no such limit)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text()
        used = int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) << 10 if "VmData" in status else 0
        if used:
            resource.setrlimit(resource.RLIMIT_DATA, (used + extra, used + extra))


def _hand_over(control: socket.socket) -> None:
    """Connect to the listener that native code opens, close it, and give the connection away."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        for listener in _sockets():
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ours = socket.create_connection(listener.getsockname(), WITHIN_S)
                _await_accept(ours.getsockname(), listener.getsockname(), deadline)
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                ours.setblocking(False)
                socket.send_fds(control, [b"+"], [ours.fileno()])
                ours.close()
                return
        time.sleep(POLL_S)
    os._exit(1)


def _await_accept(ours: tuple[str, int], listener: tuple[str, int], deadline: float) -> None:
    """Until native code has accepted our connection. If it accepted another, somebody on this machine was quicker."""
    while time.monotonic() < deadline:
        for each in _sockets():
            with contextlib.suppress(OSError):
                if each.getsockname() == listener:
                    if each.getpeername() == ours:
                        return
                    os._exit(INTRUDER)
        time.sleep(POLL_S)
    os._exit(1)


def _sockets() -> Iterator[socket.socket]:
    """This process's TCP sockets, each as a copy that is closed after use."""
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.family == socket.AF_INET:
                        yield found


if __name__ == "__main__":
    sys.exit(main())
