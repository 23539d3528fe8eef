"""A model on its way to this machine: files that stay when the process ends, so that the next attempt goes on.

What is there already is found by its hashes, not by a note beside it: a note could be ahead of the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from node import disk
from node.core.manifest import Manifest
from node.errors import ConclaveError, NotReady
from node.home import private_dir

_MOST_PARTS = 64  # of one call: a piece has some more where a peer sends it in crumbs
RESERVE = 64 << 20  # bytes of the disk that stay free


def check_space(folder: Path, size: int, what: str, where: str) -> None:
    """Raise NotReady unless a folder's disk has room for `size` more bytes; `where` says how to choose another."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    if free < size + RESERVE:
        raise NotReady(
            f"{what} needs {size / 1e9:.2f} GB more and the disk of {existing} has {free / 1e9:.2f} GB free: free "
            f"some, or {where}"
        )


class Partial:
    """The files of a manifest in a folder, under names that no other part takes for models. Use it with `with`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._fds: list[int] = []

    def __enter__(self) -> Partial:
        """Open what is there, locked. Raises NotReady if another process is at it or the disk has no room."""
        try:
            private_dir(self._folder)
            for path in map(self._partial, range(len(self._manifest.files))):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                self._fds.append(fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            written = sum(os.fstat(fd).st_blocks * 512 for fd in self._fds)
            name = self._manifest.files[0].name
            check_space(self._folder, max(self._manifest.size - written, 0), name, "set CONCLAVE_HOME")
            for fd, file in zip(self._fds, self._manifest.files, strict=True):
                os.ftruncate(fd, file.size)
        except BlockingIOError:
            self.__exit__()
            raise NotReady(f"{self._manifest.files[0].name} is being fetched by another process: wait for it") from None
        except OSError as e:
            self.__exit__()
            raise _full(self._folder, e) from None
        except ConclaveError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def held(self, progress: Callable[[int], None] = lambda _: None) -> set[int]:
        """The pieces that are there and right; reads them all. `progress` is told the bytes that were read."""
        found, at = set(), 0
        for index in range(self._manifest.count):
            piece = self._manifest.piece(index)
            fd = self._fds[piece.file]
            if _is_hole(fd, piece.offset, piece.size):
                continue
            data = os.pread(fd, piece.size, piece.offset)
            if hashlib.sha256(data).digest() == piece.sha256:
                found.add(index)
            at += piece.size
            progress(at)
        return found

    def put(self, index: int, parts: Sequence[bytes]) -> bool:
        """Write a piece if it is right; says whether it is. Raises NotReady if the disk does not take it."""
        piece = self._manifest.piece(index)
        found = hashlib.sha256()
        for part in parts:
            found.update(part)
        if sum(map(len, parts)) != piece.size or found.digest() != piece.sha256:
            return False
        try:
            left, at = [memoryview(part) for part in parts], piece.offset
            while left:
                written = os.pwritev(self._fds[piece.file], left[:_MOST_PARTS], at)
                at += written
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except OSError as e:
            raise _full(self._folder, e) from None
        return True

    def settle(self) -> None:
        """Have the disk take what was written so far, so that less is left to wait for at the end."""
        with contextlib.suppress(OSError):  # `finish` says it
            for fd in self._fds:
                disk.sync(fd)

    def finish(self, check: Callable[[Path], None]) -> Path:
        """All pieces are there: give the files their names, if `check` of the first does not raise; its path."""
        files = self._manifest.files
        try:
            for fd in self._fds:
                disk.sync(fd)
            # The first part last: what looks for models sees a split one only when it is whole.
            for i in (*range(1, len(files)), 0):
                os.rename(self._partial(i), self._folder / files[i].name)
            check(self._folder / files[0].name)
            disk.sync_directory(self._folder)
        except OSError as e:
            raise _full(self._folder, e) from None
        except ConclaveError:
            for file in files:
                (self._folder / file.name).unlink(missing_ok=True)
            raise
        return self._folder / files[0].name

    def _partial(self, index: int) -> Path:
        return self._folder / f"{self._manifest.files[index].name}.{self._manifest.digest[:16]}.partial"


def _is_hole(fd: int, offset: int, size: int) -> bool:
    """Whether nothing was ever written there, as far as the file system says."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + size
    except OSError as e:
        return e.errno == errno.ENXIO
    except AttributeError:
        return False


def _full(folder: Path, e: OSError) -> NotReady:
    advice = "free some space and pull again, it resumes" if e.errno == errno.ENOSPC else "correct that and pull again"
    return NotReady(f"{folder} cannot be written ({e.strerror or e}): {advice}")
