"""Snapshots on disk: headers by topic and blocks by key, within a budget.

Blocks are files named by their keys, written beside and renamed into place; equal prefixes of several topics are one
file. Nothing is synced: a block that is torn or missing is found out by its checksum and costs a prefill. What goes
first when the budget is reached is what would cost least to compute again for the room that it takes, soonest
forgotten (`node.core.budget`). Paths are text, since their names come and go (why: `node.engine.shelf`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from node.core import budget, snapshot
from node.core.budget import Stored
from node.core.refusal import Reason, refuse
from node.core.snapshot import Header
from node.errors import ConclaveError
from node.home import private_dir
from node.types import Version

_MAX_FILE = 64 << 20


class Blocks:
    """Blocks and headers in a directory, `limit` bytes in all (0: nothing is kept). Everything blocks; any thread."""

    def __init__(self, directory: Path, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.RLock()
        self._sizes: dict[bytes, int] = {}
        self._stored: dict[str, Stored] = {}
        self.bytes = 0
        if limit:
            self._blocks, self._headers = private_dir(directory / "blocks"), private_dir(directory / "snapshots")
            self._load()

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._limit > 0

    def has(self, key: bytes) -> bool:
        """Whether a block is held, as far as is known."""
        return key in self._sizes

    def get(self, key: bytes) -> bytes | None:
        """A block as it was put; None if it is not held, or its file is gone or was made into something else."""
        if key not in self._sizes:
            return None
        data = _read(self._path(key))
        if data is None:
            self.drop(key)
        return data

    def put(self, key: bytes, data: bytes) -> None:
        """Keep a block. Raises OSError."""
        _write(self._path(key), data)
        with self._lock:
            self.bytes += len(data) - self._sizes.get(key, 0)
            self._sizes[key] = len(data)
            if self.bytes > self._limit:  # pushes that never end must not fill the disk either
                self._make_room("")
                if self.bytes > self._limit:
                    self._drop_unused(list(self._sizes))

    def try_out(self) -> None:
        """Whether the disk takes anything, after it did not. Raises OSError."""
        for directory in (self._blocks, self._headers):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have deleted it
        path = os.path.join(self._blocks, "trial.new")
        _write(path, bytes(4096))
        os.unlink(path)

    def drop(self, key: bytes) -> None:
        """Let a block go."""
        with self._lock:
            self.bytes -= self._sizes.pop(key, 0)
        with contextlib.suppress(OSError):
            os.unlink(self._path(key))

    def header(self, topic: str) -> bytes | None:
        """The header of a topic's snapshot as it was saved; a use of it."""
        stored = self._stored.get(topic)
        if stored is None:
            return None
        data = _read(self._header_path(topic))
        if data is None:
            self.forget(topic)
            return None
        with self._lock:
            if self._stored.get(topic) is not stored:  # it was forgotten, or replaced, as we read it
                return data
            self._stored[topic] = budget.used(stored, self._clock())
        with contextlib.suppress(OSError):
            os.utime(self._header_path(topic))
        return data

    def save(self, header: Header) -> None:
        """Keep a snapshot whose blocks were put, in the place of the topic's last one, and make room. Raises OSError,
        or CorruptSnapshot if a block is not there."""
        keys = tuple(b.key for b in header.blocks)
        with self._lock:
            if not all(key in self._sizes for key in keys):
                raise refuse(Reason.MISSING, "one of its blocks is not here")
            data = header.pack()
            _write(self._header_path(header.topic), data)
            before = self._stored.get(header.topic)
            self._stored[header.topic] = Stored(
                header.topic, header.version, len(header.tokens), keys, len(data), self._clock()
            )
            self.bytes += len(data) - (before.header_bytes if before else 0)
            if before:
                self._drop_unused(before.keys)
            self._make_room(header.topic)

    def forget(self, topic: str) -> None:
        """Let a topic's snapshot go, with the blocks that no other has."""
        with self._lock:
            stored = self._stored.pop(topic, None)
            if stored is None:
                return
            self.bytes -= stored.header_bytes
            with contextlib.suppress(OSError):
                os.unlink(self._header_path(topic))
            self._drop_unused(stored.keys)

    def version(self, topic: str) -> Version | None:
        """The version of a topic's snapshot; None if there is none."""
        stored = self._stored.get(topic)
        return stored.version if stored is not None else None

    def tokens(self, topic: str) -> int:
        """The tokens of a topic's snapshot; 0 if there is none."""
        stored = self._stored.get(topic)
        return stored.tokens if stored is not None else 0

    def topics(self) -> list[str]:
        """Topics with a snapshot."""
        return sorted(self._stored)

    # ---- acting ----

    def _load(self) -> None:
        for path in _files(self._blocks):
            with contextlib.suppress(ValueError, OSError):
                self._sizes[bytes.fromhex(path.stem)] = path.stat().st_size
        self.bytes = sum(self._sizes.values())
        used: set[bytes] = set()
        for path in _files(self._headers):
            data = _read(path)
            try:
                topic, version, tokens, keys = snapshot.summary(data or b"")
            except ConclaveError:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            if not all(key in self._sizes for key in keys) or self._header_path(topic) != str(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            size = len(data or b"")
            self._stored[topic] = Stored(topic, version, tokens, keys, size, path.stat().st_mtime)
            self.bytes += size
            used.update(keys)
        for key in set(self._sizes) - used:  # of pushes that broke off
            self.drop(key)
        self._make_room("")

    def _make_room(self, spare: str) -> None:
        if self.bytes <= self._limit:
            return
        for stored in budget.leave(self._stored.values(), self._sizes, self._clock()):
            if stored.topic != spare:
                self.forget(stored.topic)
            if self.bytes <= self._limit:
                return
        if spare:
            self.forget(spare)

    def _drop_unused(self, keys: Iterable[bytes]) -> None:
        used = {key for stored in self._stored.values() for key in stored.keys}
        for key in set(keys) - used:
            self.drop(key)

    def _path(self, key: bytes) -> str:
        return os.path.join(self._blocks, f"{key.hex()}.kv")

    def _header_path(self, topic: str) -> str:
        return os.path.join(self._headers, f"{hashlib.blake2b(topic.encode(), digest_size=16).hexdigest()}.head")


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name.endswith(".new"):
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            yield path


def _read(path: str | Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE:
            return None
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            return file.read(found.st_size)
    except OSError:
        return None
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{threading.get_ident()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
