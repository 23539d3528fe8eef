"""What a model's files are, piece by piece: enough to know each piece that a peer sends for right or wrong by itself.

As in BitTorrent's metainfo (BEP 3) there is a hash for each piece, and the hash of all this is the model's identity:
nodes that say the same digest have the same files, byte for byte.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from node.errors import InvalidRequest

PIECE = 4 << 20  # bytes: what is sent again after a break, and a third of a second on 100 Mbit/s
HASH = 32  # bytes of SHA-256
MOST_FILES = 999
MOST_BYTES = 1 << 42
# No folder, nothing hidden, nothing that a shell or a terminal takes for more than a name.
_NAME = re.compile(r"\w[\w .,+@()=-]{0,199}\.gguf", re.ASCII)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model: its name without a folder, its bytes, and the SHA-256 of each piece, one after the other."""

    name: str
    size: int
    hashes: bytes = b""

    @property
    def pieces(self) -> int:
        """Pieces that it has."""
        return -(-self.size // PIECE)


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a piece lies: the file by its index, and bytes in it."""

    file: int
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Manifest:
    """The files of one model, in order."""

    files: tuple[File, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def count(self) -> int:
        """Pieces of all files."""
        return sum(file.pieces for file in self.files)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over all of it."""
        found = hashlib.sha256(b"conclave model 1\n")
        for file in self.files:
            found.update(f"{file.name}\n{file.size}\n".encode())
            found.update(file.hashes)
        return found.hexdigest()

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for file in self.files:
            starts.append(starts[-1] + file.pieces)
        return starts

    def piece(self, index: int) -> Piece:
        """One piece, counted over all files. Raises InvalidRequest if there is none."""
        if not 0 <= index < self.count:
            raise InvalidRequest(f"piece {index} of a model of {self.count}")
        at = bisect.bisect_right(self._starts, index) - 1
        number, file = index - self._starts[at], self.files[at]
        offset = number * PIECE
        sha256 = file.hashes[number * HASH : (number + 1) * HASH]
        return Piece(at, offset, min(PIECE, file.size - offset), sha256)


def check_files(files: Sequence[File]) -> str:
    """What is wrong with files that a peer says it has: their names and sizes; empty if nothing is."""
    if not 1 <= len(files) <= MOST_FILES:
        return f"it has {len(files)} files"
    for file in files:
        if not _NAME.fullmatch(file.name):
            return f"{file.name[:80]!r} is no name of a model's file"
        if file.size < 1:
            return f"{file.name} is empty"
    if len({file.name.lower() for file in files}) < len(files):
        return "two of its files have one name"
    if sum(file.size for file in files) > MOST_BYTES:
        return "it is larger than any model"
    return ""


def check(manifest: Manifest) -> str:
    """The same for a whole manifest, with its hashes."""
    for file in manifest.files:
        if len(file.hashes) != file.pieces * HASH:
            return f"{file.name[:80]!r} comes with {len(file.hashes)} bytes of hashes for {file.pieces} pieces"
    return check_files(manifest.files)


def safe_name(text: str) -> str:
    """A name for a file, of a name that another program gave to a model (`owner/model:tag`)."""
    plain = re.sub(r"[^\w .,+@()=-]", "-", text, flags=re.ASCII)
    return f"{re.sub(r'^[^a-zA-Z0-9]+', '', plain)[:150] or 'model'}.gguf"
