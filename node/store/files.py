"""Logs as files: one a topic, a line an entry, appended with fsync.

A process may die, a disk fill up, a file be deleted or replaced at any moment. A line counts when it is whole; what
follows the last whole line is cut off before the next one is written. A file that is not as this process left it is
written anew from what is held in memory. Paths are text, since topics come and go (why: `node.engine.shelf`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from node import disk
from node.core.log import Entry
from node.home import private_dir
from node.store import records

# What opening a file says when it is not there, or something else is.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
MAX_LINE = 64 << 20  # bytes; a longer one is no entry of ours


class LogFiles:
    """The files of a directory. Everything here blocks; OSError means that nothing can be relied on but the old."""

    def __init__(self, directory: Path) -> None:
        self._directory = private_dir(directory)
        # Size and identity of each file as we left it: (bytes, device and inode).
        self._known: dict[str, tuple[int, int, int]] = {}

    def path(self, topic: str) -> str:
        """A topic's file. Its name is a hash: topics may be named anything."""
        name = hashlib.blake2b(topic.encode(), digest_size=16).hexdigest()
        return os.path.join(self._directory, f"{name}.jsonl")

    def read_all(self) -> Iterator[tuple[str, list[Entry]]]:
        """All topics with their entries; torn tails are cut off, files that are not ours left alone."""
        for name in sorted(os.listdir(self._directory)):
            path = os.path.join(self._directory, name)
            if name.endswith(".new"):  # a rewrite that was not finished
                with contextlib.suppress(OSError):  # a disk that is read-only is read all the same
                    os.unlink(path)
            elif name.endswith(".jsonl"):
                try:
                    found = self._read(path)
                except OSError:
                    continue
                if found is not None and self.path(found[0]) == path:
                    yield found

    def read(self, topic: str) -> list[Entry]:
        """The entries of one topic; none if its file is gone, or is a link or no file. Raises OSError if the disk does
        not give it."""
        try:
            found = self._read(self.path(topic))
        except OSError as e:
            if e.errno in _GONE:
                return []
            raise
        return found[1] if found is not None and found[0] == topic else []

    def append(self, topic: str, entries: Sequence[Entry], whole: Iterable[Entry]) -> None:
        """Add entries to a topic's file; `whole` is all that the file must hold then, if it has to be written anew.
        Returns when the disk has it. Raises OSError."""
        path = self.path(topic)
        known = self._known.get(topic)
        if known is None or not _is(path, known):
            self.rewrite(topic, whole)
            return
        size = known[0]
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            data = b"".join(records.line(entry) for entry in entries)
            try:
                _write(fd, data)
                disk.sync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    _heal(fd, size)
                raise
            self._known[topic] = _identity(fd)
        finally:
            os.close(fd)

    def rewrite(self, topic: str, entries: Iterable[Entry]) -> None:
        """Put a new file in the place of a topic's, in one step. Raises OSError; then the old one stands."""
        path = self.path(topic)
        temporary = f"{path}.new"
        self._directory.mkdir(mode=0o700, exist_ok=True)  # somebody may have deleted it
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write(fd, b"".join([records.head(topic), *(records.line(entry) for entry in entries)]))
            disk.sync(fd)
            os.rename(temporary, path)
            self._known[topic] = _identity(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        disk.sync_directory(self._directory)

    def remove(self, topic: str) -> None:
        """Delete a topic's file; no error if there is none. Raises OSError."""
        self._known.pop(topic, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(topic))

    def written(self, topic: str) -> float:
        """When a topic's file was written last, Unix time in seconds. Raises OSError."""
        return os.stat(self.path(topic)).st_mtime

    def _read(self, path: str) -> tuple[str, list[Entry]] | None:
        fd, can_heal = _open(path)
        with os.fdopen(fd, "rb", buffering=1 << 20) as file:
            topic = records.topic(file.readline(MAX_LINE))
            if topic is None:
                return None
            entries, good = [], file.tell()
            while line := file.readline(MAX_LINE):
                entry = records.entry(line) if line.endswith(b"\n") else None
                if entry is not None:
                    entries.append(entry)
                if line.endswith(b"\n"):  # a line that was damaged later costs itself only
                    good = file.tell()
            if good < os.fstat(file.fileno()).st_size:
                if not can_heal:  # unknown, so it is written anew when the disk takes it
                    return topic, entries
                _heal(file.fileno(), good)
            self._known[topic] = _identity(file.fileno())
            return topic, entries


def _open(path: str) -> tuple[int, bool]:
    """A file to be read, and whether it can be written too: a disk that became read-only still has what it has."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags), True
    except OSError as e:
        if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    return os.open(path, os.O_RDONLY | flags), False


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _heal(fd: int, size: int) -> None:
    os.ftruncate(fd, size)
    disk.sync(fd)


def _identity(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_dev, found.st_ino


def _is(path: str, known: tuple[int, int, int]) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (found.st_size, found.st_dev, found.st_ino) == known
