"""Reading the head of a GGUF file: enough to refuse a broken one, name it and take its fingerprint.

The layout is that of ggml/docs/gguf.md (version 3; 2 is the same with what is read here). llama.cpp reads the file
itself; this comes first because native code that meets a truncated file may abort the process.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.errors import BackendError, NotFound

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 1 << 24  # entries of anything; the largest vocabularies have 2**18
_MAX_STRING = 1 << 24  # bytes; chat templates have some 10**4
_SAMPLE = 4096  # bytes that are hashed at each sampled place
_SAMPLES = 64

# Bytes and values of a block by ggml type: ggml/src/ggml-common.h. Types that are not here are not checked for size.
_BLOCKS = {
    0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32), 9: (36, 32),
    10: (84, 256), 11: (110, 256), 12: (144, 256), 13: (176, 256), 14: (210, 256), 24: (1, 1), 25: (2, 1),
    26: (4, 1), 27: (8, 1), 28: (8, 1), 30: (2, 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gguf:
    """The head of a model file. `metadata` holds scalars and texts; arrays are left out."""

    path: Path
    metadata: dict[str, str | int | float | bool]
    tensors: int
    data_offset: int
    size: int
    head_sha256: str

    @property
    def name(self) -> str:
        """The model's name for people: what the file says, else the file's own name."""
        name = self.metadata.get("general.name")
        return str(name)[:128] if name else self.path.stem

    def fingerprint(self, *parts: object) -> str:
        """Hex hash of all metadata, tensor names, types and shapes, of sampled tensor bytes, and of `parts`."""
        digest = hashlib.sha256(self.head_sha256.encode())
        with self.path.open("rb") as file:
            span = max(self.size - self.data_offset, 0)
            for i in range(_SAMPLES):
                file.seek(self.data_offset + span * i // _SAMPLES)
                digest.update(file.read(_SAMPLE))
        digest.update(repr((self.size, parts)).encode())
        return digest.hexdigest()


def read(path: Path) -> Gguf:
    """Read and check the head of a file. Raises NotFound or BackendError with one line."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BackendError(f"{path} is a directory: --model takes a GGUF file")
        with path.open("rb") as file:
            return _Reader(path, file, size).read()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: --model takes a GGUF file, `bundled` or `auto`") from None
    except OSError as e:
        raise BackendError(f"{path} cannot be read: {e.strerror or e}") from None
    except (struct.error, EOFError, UnicodeDecodeError, OverflowError):
        raise BackendError(f"{path} is cut off or damaged inside its header: download it again") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._digest = hashlib.sha256()

    def read(self) -> Gguf:
        if self._bytes(4) != b"GGUF":
            raise BackendError(f"{self._path} is no GGUF file: it does not begin with GGUF")
        version = self._u32()
        if version not in (2, 3):
            raise BackendError(f"{self._path} is GGUF version {version}: versions 2 and 3 are known")
        tensors, pairs = self._count(), self._count()
        metadata: dict[str, str | int | float | bool] = {}
        for _ in range(pairs):
            key = self._string()
            value = self._value(self._u32())
            if value is not None:
                metadata[key] = value
        ends = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise BackendError(f"{self._path} is damaged: its alignment is {alignment!r}")
        offset = -(-self._file.tell() // alignment) * alignment
        if offset + max(ends, default=0) > self._size:
            missing = offset + max(ends) - self._size
            raise BackendError(f"{self._path} is cut off: {missing} bytes are missing; download it again")
        if "general.architecture" not in metadata or not tensors:
            raise BackendError(f"{self._path} is a GGUF file without a model in it")
        return Gguf(self._path, metadata, tensors, offset, self._size, self._digest.hexdigest())

    def _bytes(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise EOFError
        self._digest.update(data)
        return data

    def _u32(self) -> int:
        return int(struct.unpack("<I", self._bytes(4))[0])

    def _u64(self) -> int:
        return int(struct.unpack("<Q", self._bytes(8))[0])

    def _count(self) -> int:
        n = self._u64()
        if n > _MAX_COUNT:
            raise EOFError
        return n

    def _string(self) -> str:
        n = self._u64()
        if n > _MAX_STRING:
            raise EOFError
        return self._bytes(n).decode("utf-8", "replace")

    def _value(self, kind: int) -> str | int | float | bool | None:
        if kind in _SCALARS:
            value = struct.unpack(_SCALARS[kind], self._bytes(struct.calcsize(_SCALARS[kind])))[0]
            return value  # type: ignore[no-any-return]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise EOFError
        of, n = self._u32(), self._count()
        if of in _SCALARS:
            self._bytes(n * struct.calcsize(_SCALARS[of]))
        elif of == _STRING:
            for _ in range(n):
                self._bytes(min(self._u64(), _MAX_STRING + 1))
        else:
            raise EOFError
        return None

    def _tensor(self) -> int:
        """Where the tensor's data ends, in bytes from the data's beginning."""
        self._string()
        shape = [self._u64() for _ in range(min(self._u32(), 9))]
        kind, offset = self._u32(), self._u64()
        block = _BLOCKS.get(kind)
        return offset + (math.prod(shape) * block[0] // block[1] if block else 0)
