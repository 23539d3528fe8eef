"""Copies of KV on disk, for topics that memory has no room for.

They are caches of this process alone: the folder is emptied at start, and a copy that is not what was put there
(another program wrote to it, the disk lost bits) is refused by its checksum, which stays in memory, before native code
sees it. A thread writes, so that decoding does not wait for a disk; until a copy is written it is served from memory.
What the disk does not take (it is full, read-only, gone) is lost: the topic is prefilled again.

Names that come and go are joined as text here: pathlib interns each part of a path, and Python 3.12 keeps what is
interned for ever (its issue 113993; before and after, the table of interned names still doubles for them).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from node.core.recent import Recent
from node.core.slots import Speeds

log = logging.getLogger(__name__)

_SUFFIX = ".kv"


class Shelved:
    """One copy: `nbytes` of it, in a file once it is written."""

    def __init__(self, path: str, state: Any) -> None:
        self.path = path
        self.nbytes: int = state.nbytes
        self.state: Any = state  # None once it is written
        self.digest = b""


class Shelf:
    """Copies in a folder, made if need be. `limit` in bytes is kept by whoever puts them there.

    Raises OSError if the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self._reads = Recent()
        self._folder = folder
        self._names = itertools.count()
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shelf")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob(f"*{_SUFFIX}"):
            old.unlink(missing_ok=True)

    def put(self, state: Any) -> Shelved:
        """Take a copy; a state that was taken must not be changed any more."""
        copy = Shelved(os.path.join(self._folder, f"{next(self._names)}{_SUFFIX}"), state)
        self._writer.submit(self._write, copy)
        return copy

    def get(self, copy: Shelved) -> Any:
        """The state as it was put, or None if it is lost."""
        with self._lock:
            if copy.state is not None:
                return copy.state
        started = time.perf_counter()
        try:
            state = np.fromfile(copy.path, dtype=np.uint8)
        except OSError as e:
            log.warning("a topic's KV cannot be read from disk (%s): it is computed again", e)
            return None
        if state.nbytes != copy.nbytes or _digest(state) != copy.digest:
            log.warning("%s is not what was written there: the topic's KV is computed again", copy.path)
            return None
        took = (time.perf_counter() - started) / max(copy.nbytes, 1)
        self._reads.add(took, started)
        return state

    @property
    def seconds_per_byte(self) -> float:
        """Of reading, by the quickest of the last times."""
        return self._reads.least(time.perf_counter(), Speeds().disk_s_per_byte)

    def drop(self, copy: Shelved) -> None:
        """Forget a copy."""
        self._writer.submit(_unlink, copy.path)  # after its writing

    def wait(self) -> None:
        """Until all that was put is written."""
        self._writer.submit(int).result()

    def close(self) -> None:
        """Finish writing and forget all copies."""
        self._writer.shutdown()
        for each in self._folder.glob(f"*{_SUFFIX}"):
            _unlink(each)

    def _write(self, copy: Shelved) -> None:
        try:
            handle = os.open(copy.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(copy.state.data)
        except OSError as e:
            log.warning("a topic's KV cannot be written to disk (%s): it will be computed again", e)
            _unlink(copy.path)
            with self._lock:
                copy.state = None  # not found when it is wanted
            return
        digest = _digest(copy.state)
        with self._lock:
            copy.digest, copy.state = digest, None


def _digest(state: Any) -> bytes:
    return hashlib.blake2b(state.data, digest_size=16).digest()


def _unlink(path: str | Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
