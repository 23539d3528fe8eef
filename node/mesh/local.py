"""The nodes of this user on this machine: each keeps a small file in the runtime directory while it runs.

So two nodes on one machine meet whatever the network does, and client commands find this machine's node. A file is
locked (flock) by its node as long as that lives; a file that can be locked is of a dead one, and is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from node.home import private_dir

WATCH_S = 0.5
LOOK_S = 5.0  # In any case, should a file system not keep the time of its directories.
GRAIN_S = 2.0  # FAT's, the coarsest there is.
MAX_NODES = 256
MAX_BYTES = 4096
RUNNING, STARTING = ".json", ".starting"  # so that whoever looks for nodes finds none that cannot answer


@dataclass(frozen=True, slots=True)
class RunningNode:
    """What a running node says of itself. Addresses are HOST:PORT, empty if it has no such listener.

    `started` is Unix time in seconds. `network` names the network namespace that its addresses are of, if there
    are such. One that `is_starting` has no addresses yet, and since `started` is busy with its model.
    """

    node_id: str
    pid: int
    mesh_id: str
    mesh_address: str
    local_address: str
    started: float
    http_address: str = ""
    network: str = ""
    name: str = ""
    is_starting: bool = False

    @property
    def id(self) -> str:
        """Its id, as other descriptions of nodes have it."""
        return self.node_id


def network() -> str:
    """The network namespace of this process (network_namespaces(7)): containers may share a directory and no network,
    and an address of one is somebody else's, or nobody's, in another. Empty on systems without."""
    try:
        found = os.stat("/proc/self/ns/net")
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


class Presence:
    """This node's own file; it lasts until `withdraw` or the end of the process."""

    def __init__(self, runtime: Path) -> None:
        self._directory = private_dir(private_dir(runtime) / "nodes")
        self._fd: int | None = None
        self._path: Path | None = None
        self._node: RunningNode | None = None

    def publish(self, node: RunningNode) -> None:
        """Writes the file (0600) in one step, or puts a newer one in its place. Raises OSError."""
        fd, temporary = tempfile.mkstemp(dir=self._directory, prefix=".new-")  # mkstemp makes it 0600.
        path = self._directory / (node.node_id + (STARTING if node.is_starting else RUNNING))
        try:
            # The lock goes with the open file, so it holds under the new name from the first moment on.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, json.dumps(asdict(node)).encode())
            os.rename(temporary, path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._path, self._node = fd, path, node

    def keep(self) -> None:
        """Writes the file again if somebody removed it (a cleaner of /tmp does)."""
        if self._path is not None and self._node is not None and not self._path.exists():
            with contextlib.suppress(OSError):
                self.publish(self._node)

    def withdraw(self) -> None:
        """Removes the file; harmless when done twice."""
        if self._path is not None and self._fd is not None:
            with contextlib.suppress(OSError):
                if os.fstat(self._fd).st_ino == self._path.stat().st_ino:
                    self._path.unlink()
            os.close(self._fd)
        self._fd = self._path = self._node = None


def running_nodes(runtime: Path) -> list[RunningNode]:
    """The nodes of this user that run on this machine and in this network, the oldest first; files of dead ones are
    removed on the way."""
    return _found(runtime, RUNNING)


def starting_nodes(runtime: Path) -> list[RunningNode]:
    """Those that are still loading their models."""
    return _found(runtime, STARTING)


def _found(runtime: Path, suffix: str) -> list[RunningNode]:
    found, here = [], network()
    with contextlib.suppress(OSError):
        names = sorted(n for n in os.listdir(runtime / "nodes") if n.endswith(suffix) and not n.startswith("."))
        for name in names[:MAX_NODES]:
            with contextlib.suppress(OSError):
                node = _read(runtime / "nodes" / name)
                is_near = node is not None and node.network in ("", here)
                if node is not None and is_near and node.node_id + suffix == name:
                    found.append(node)
    return sorted(found, key=lambda n: (n.started, n.node_id))


def _read(path: Path) -> RunningNode | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        here = os.fstat(fd)
        if here.st_uid != os.getuid():
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.read(fd, MAX_BYTES))
        # Nobody holds it: its node is dead. Another start of that node may have replaced the file just now.
        if path.stat().st_ino == here.st_ino:
            path.unlink()
        return None
    finally:
        os.close(fd)


def _parse(raw: bytes) -> RunningNode | None:
    try:
        values = json.loads(raw)
        node = RunningNode(**{f.name: values[f.name] for f in fields(RunningNode) if f.name in values})
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (node.node_id, node.mesh_id, node.mesh_address, node.local_address, node.http_address, node.network)
    numbers = (node.pid, node.started, node.is_starting)
    if all(isinstance(t, str) for t in (*texts, node.name)) and all(isinstance(n, int | float) for n in numbers):
        return node
    return None


async def watch(runtime: Path, on_found: Callable[[RunningNode], None], presence: Presence | None = None) -> None:
    """Calls `on_found` for each node that appears or changes, until cancelled; also keeps our own file alive.

    Looking twice a second costs 20 µs while the directory stays as it is; inotify would not work on every file system.
    """
    known: dict[str, RunningNode] = {}
    before, look_at = -1.0, 0.0
    while True:
        if presence is not None:
            presence.keep()
        changed, now = _changed(runtime), time.time()
        # A time of a moment ago does not tell what changed since, for it has the grain of the file system.
        if changed != before or changed > now - GRAIN_S or not 0 <= look_at - now <= LOOK_S:
            before, look_at = changed, now + LOOK_S
            running = {n.node_id: n for n in running_nodes(runtime)}
            for node in running.values():
                if known.get(node.node_id) != node:
                    on_found(node)
            known = running
        await asyncio.sleep(WATCH_S)


def _changed(runtime: Path) -> float:
    """When a node's file came or went, Unix time; 0 if none ever did."""
    try:
        return (runtime / "nodes").stat().st_mtime
    except OSError:
        return 0.0
