"""Writing what must be on the disk, not only in the drive's own memory, and what can be had again: one place for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path


def sync(fd: int) -> None:
    """Return when the disk has what was written to a file: macOS's fsync promises less than others' (fsync(2) there),
    F_FULLFSYNC is what it has for that; some network file systems do not know it. Raises OSError."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """The same of the names in a directory. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def remember(path: Path, said: object) -> None:
    """Keep as JSON what can be had again, whole or not at all, as several nodes may do it at once. Where nothing can be
    written, it is had again the next time."""
    text = json.dumps(said)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            new.write_text(text)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
