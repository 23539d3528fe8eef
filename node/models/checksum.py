"""The SHA-256 of a model's file, kept beside it as `sha256sum` writes it, so that gigabytes are hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path


def beside(path: Path) -> Path:
    """Where a file's checksum is kept: `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def kept(path: Path) -> str:
    """The checksum that was kept; empty if there is none, or the file was changed since."""
    try:
        about, note = path.stat(), beside(path)
        if note.stat().st_mtime_ns < about.st_mtime_ns:
            return ""
        with note.open("rb") as file:
            said = file.read(1024)
    except OSError:
        return ""
    match = re.fullmatch(rb"([0-9a-f]{64}) [ *](.+)\n", said)
    return match[1].decode() if match and match[2] == os.fsencode(path.name) else ""


def of(path: Path) -> str:
    """The checksum, hex: the one that was kept, or a new one, which is then kept if it can be. Raises OSError."""
    if known := kept(path):
        return known
    with path.open("rb", buffering=0) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):
        beside(path).write_bytes(f"{found}  ".encode() + os.fsencode(path.name) + b"\n")
    return found
