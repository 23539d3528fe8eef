"""Where a node keeps its files: configuration and data by the platform's custom, and what lives as long as a process.

`CONCLAVE_HOME` puts everything under one directory, for tests and for several separate meshes on one machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node.errors import InvalidRequest

SET_IT = "set it to a directory that you may write to, or leave it out"
MAX_NODES = 64  # Default data directories that are tried; more nodes than that on one machine is a mistake.


@dataclass(frozen=True, slots=True)
class Home:
    """Directories of one user on one machine; none of them need exist yet.

    `config` holds the token and the configuration file, `data` one directory a node, `runtime` what running nodes say
    about themselves. `runtime` is local to the machine even where home directories are shared over a network.
    """

    config: Path
    data: Path
    runtime: Path


def home(environ: Mapping[str, str] | None = None) -> Home:
    """The directories of this environment: XDG on Linux, ~/Library on macOS, all under CONCLAVE_HOME if set.

    Raises InvalidRequest where CONCLAVE_HOME can be no directory.
    """
    env = os.environ if environ is None else environ
    if own := env.get("CONCLAVE_HOME"):
        root = Path(own).expanduser().absolute()
        there = next((p for p in (root, *root.parents) if os.path.lexists(p)), root)
        if os.path.lexists(there) and not there.is_dir():
            raise InvalidRequest(f"CONCLAVE_HOME is {own}, and {there} is no directory: {SET_IT}")
        return Home(root / "config", root / "data", root / "run")
    user = Path(env.get("HOME") or Path.home())
    if sys.platform == "darwin":
        support = user / "Library" / "Application Support" / "conclave"
        return Home(support, support / "data", Path(f"/tmp/conclave-{os.getuid()}"))
    config, data = (
        # The XDG specification says that a relative path is invalid and to be ignored.
        Path(env[name]) if os.path.isabs(env.get(name, "")) else user / default
        for name, default in (("XDG_CONFIG_HOME", ".config"), ("XDG_DATA_HOME", ".local/share"))
    )
    return Home(config / "conclave", data / "conclave", _runtime(env))


def _runtime(env: Mapping[str, str]) -> Path:
    # A node started by cron or systemd has no XDG_RUNTIME_DIR, one started from a terminal has: both must come to the
    # same place, or they do not find each other. So the usual value is tried before /tmp.
    for candidate in (env.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"):
        if os.path.isabs(candidate) and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate) / "conclave"
    return Path(f"/tmp/conclave-{os.getuid()}")


def remedy(e: OSError, environ: Mapping[str, str] | None = None) -> str:
    """What to do where a file or directory of ours cannot be used."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there, or set CONCLAVE_HOME to a directory on a disk that has some"
    if own := (os.environ if environ is None else environ).get("CONCLAVE_HOME"):
        return f"CONCLAVE_HOME is {own}: {SET_IT}"
    return "make it yours, or set CONCLAVE_HOME to a directory that you may write to"


def private_dir(path: Path) -> Path:
    """Makes a directory that only this user can read, with its parents; returns it.

    Raises InvalidRequest if it cannot be made, or is somebody else's (in /tmp anyone could have made it first).
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InvalidRequest(f"{path} belongs to another user or is a link: remove it or set CONCLAVE_HOME")
        if found.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as e:
        raise InvalidRequest(
            f"cannot use the directory {path}: {e.strerror or e}; {remedy(e)} (--data-dir moves only a node's data)"
        ) from e
    return path


class DataDir:
    """A node's data directory, locked for this process (flock on its file `lock`) until `release` or exit.

    Without `asked` it is the first free one of `node-0`, `node-1`, … under `home.data`, so several nodes can run on
    one machine and each finds its own data again. Raises InvalidRequest if `asked` is in use or cannot be used.
    """

    def __init__(self, home: Home, asked: Path | None = None) -> None:
        for path in [asked] if asked else [home.data / f"node-{i}" for i in range(MAX_NODES)]:
            private_dir(path)
            fd = _lock(path / "lock")
            if fd is not None:
                self.path = path
                self._fd: int | None = fd
                return
        if asked:
            with contextlib.suppress(OSError):
                pid = (asked / "lock").read_text().strip()
                raise InvalidRequest(
                    f"data directory {asked} is in use by the node with process id {pid or 'unknown'}: "
                    "stop that node or give this one another --data-dir"
                )
        raise InvalidRequest(f"{MAX_NODES} nodes use {home.data} already: give this one its own --data-dir")

    def release(self) -> None:
        """Gives the directory free for another process; harmless when done twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _lock(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise InvalidRequest(f"cannot write {path}: {e.strerror}; {remedy(e)}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk: who holds it cannot be said, and that is all
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as e:
        os.close(fd)
        advice = "free some space" if e.errno == errno.ENOSPC else "give a --data-dir on a local disk"
        raise InvalidRequest(f"cannot lock {path}: {e.strerror}; {advice}") from e
    return fd
