"""Reading the head of a GGUF file: enough to refuse a broken one, name it and take its fingerprint.

The layout is that of ggml/docs/gguf.md (version 3; 2 is the same with what is read here). llama.cpp reads the file
itself; this comes first because native code that meets a truncated file may abort the process.
"""

from __future__ import annotations

import hashlib
import math
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from node.errors import BackendError, NotFound

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOATS = (6, 12)
_STRING, _ARRAY = 8, 9
_LAYER = re.compile(r"blk\.(\d{1,3})\.")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_HEAD = 64 << 20  # bytes; a vocabulary of 2**18 with its merges has some 16 MiB
_MAX_PAIRS = 1 << 16  # of metadata, which is kept; models have some hundred. Other counts are capped by the head.
_MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
_READ = 1 << 20  # bytes at a time
_SAMPLE = 4096  # bytes that are hashed at each sampled place
_SAMPLES = 64

_MOST_NUMBERS = 1024  # of an array that is kept: one a layer

# Bytes and values of a block by ggml type: ggml/src/ggml-common.h. Types that are not here are not checked for size.
_BLOCKS = {
    0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32), 9: (36, 32),
    10: (84, 256), 11: (110, 256), 12: (144, 256), 13: (176, 256), 14: (210, 256), 16: (66, 256), 17: (74, 256),
    18: (98, 256), 19: (50, 256), 20: (18, 32), 21: (110, 256), 22: (82, 256), 23: (136, 256), 24: (1, 1), 25: (2, 1),
    26: (4, 1), 27: (8, 1), 28: (8, 1), 29: (56, 256), 30: (2, 1), 34: (54, 256), 35: (66, 256), 39: (17, 32),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gguf:
    """The head of a model file. `metadata` holds scalars and texts, `arrays` short lists of whole numbers.

    `layer_bytes` are the weights by layer, `input_bytes` those of the token embeddings; `is_tied` says that these
    compute the output too. `matrix_types` are the ggml types of the layers' matrices. Of a split file it is the first
    part, and `parts` says how many there are.
    """

    path: Path
    metadata: dict[str, str | int | float | bool]
    tensors: int
    data_offset: int
    size: int
    head_sha256: str
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layer_bytes: dict[int, int] = field(default_factory=dict)
    input_bytes: int = 0
    input_type: int = 0
    is_tied: bool = False
    matrix_types: frozenset[int] = frozenset()
    vocabulary: int = 0

    @property
    def parts(self) -> int:
        """Files that the model is split into; 1 for a whole one."""
        count = self.metadata.get("split.count", 1)
        return count if isinstance(count, int) and 1 <= count < 1000 else 1

    @property
    def name(self) -> str:
        """The model's name for people: what the file says, else the file's own name."""
        name = self.metadata.get("general.name")
        return "".join(c for c in str(name)[:128] if c.isprintable()) if name else self.path.stem

    def fingerprint(self, *parts: object) -> str:
        """Hex hash of all metadata, tensor names, types and shapes, of sampled tensor bytes, and of `parts`.

        Raises BackendError if the file cannot be read any more.
        """
        digest = hashlib.sha256(self.head_sha256.encode())
        try:
            with self.path.open("rb") as file:
                span = max(self.size - self.data_offset, 0)
                for i in range(_SAMPLES):
                    file.seek(self.data_offset + span * i // _SAMPLES)
                    digest.update(file.read(_SAMPLE))
        except OSError as e:
            raise BackendError(f"{self.path} cannot be read: {e.strerror or e}") from None
        digest.update(repr((self.size, parts)).encode())
        return digest.hexdigest()


def read(path: Path) -> Gguf:
    """Read and check the head of a file. Raises NotFound or BackendError with one line."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a directory fails late, and a pipe would be waited for
            kind = "a directory" if stat.S_ISDIR(about.st_mode) else "no regular file"
            raise BackendError(f"{path} is {kind}: --model takes a GGUF file")
        with path.open("rb") as file:
            return _Reader(path, file, about.st_size).read()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: --model takes a GGUF file, `bundled` or `auto`") from None
    except OSError as e:
        raise BackendError(f"{path} cannot be read: {e.strerror or e}") from None
    except ValueError:
        raise NotFound(f"{str(path)!r} is no path of a file") from None
    except EOFError:
        raise BackendError(f"{path} is cut off or damaged inside its header: download it again") from None


class _Reader:
    """A cursor over the head, which is held as far as it was read: `_MAX_HEAD` bytes at most, whatever it claims."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._head = bytearray()
        self._at = 0
        self._arrays: dict[str, tuple[int, ...]] = {}
        self._layers: dict[int, int] = {}
        self._ends: dict[str, tuple[int, int]] = {}  # bytes and type of the tensors before and after the layers
        self._types: set[int] = set()
        self._vocabulary = 0

    def read(self) -> Gguf:
        if self._size < 4 or self._bytes(4) != b"GGUF":
            raise BackendError(f"{self._path} is no GGUF file: it does not begin with GGUF")
        version = self._number(_U32)
        if version not in (2, 3):
            raise BackendError(f"{self._path} is GGUF version {version}: versions 2 and 3 are known")
        tensors, pairs = self._number(_U64), self._number(_U64)
        metadata: dict[str, str | int | float | bool] = {}
        if pairs > _MAX_PAIRS:
            raise EOFError
        for _ in range(pairs):
            key = self._string()
            value = self._value(key, self._number(_U32))
            if value is not None:
                metadata[key] = value
        end = 0
        for _ in range(tensors):
            end = max(end, self._tensor())
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise BackendError(f"{self._path} is damaged: its alignment is {str(alignment)[:40]!r}")
        offset = -(-self._at // alignment) * alignment
        if offset + end > self._size:
            missing = offset + end - self._size
            raise BackendError(f"{self._path} is cut off: {missing} bytes are missing; download it again")
        if "general.architecture" not in metadata or not tensors:
            raise BackendError(f"{self._path} is a GGUF file without a model in it")
        digest = hashlib.sha256(memoryview(self._head)[: self._at]).hexdigest()
        return Gguf(
            self._path,
            metadata,
            tensors,
            offset,
            self._size,
            digest,
            self._arrays,
            self._layers,
            *self._ends.get("token_embd.weight", (0, 0)),
            is_tied="output.weight" not in self._ends,
            matrix_types=frozenset(self._types),
            vocabulary=self._vocabulary,
        )

    def _need(self, n: int) -> None:
        """Hold the next `n` bytes of the head."""
        missing = self._at + n - len(self._head)
        if missing <= 0:
            return
        if self._at + n > min(_MAX_HEAD, self._size):
            raise EOFError
        self._head += self._file.read(max(missing, min(_READ, self._size - len(self._head))))
        if self._at + n > len(self._head):
            raise EOFError

    def _bytes(self, n: int) -> bytes:
        self._need(n)
        self._at += n
        return bytes(self._head[self._at - n : self._at])

    def _skip(self, n: int) -> None:
        self._need(n)
        self._at += n

    def _number(self, kind: struct.Struct) -> int:
        return int(kind.unpack(self._bytes(kind.size))[0])

    def _string(self) -> str:
        return self._bytes(self._number(_U64)).decode("utf-8", "replace")

    def _value(self, key: str, kind: int) -> str | int | float | bool | None:
        if kind in _SCALARS:
            value = struct.unpack(_SCALARS[kind], self._bytes(struct.calcsize(_SCALARS[kind])))[0]
            return value  # type: ignore[no-any-return]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise EOFError
        of, n = self._number(_U32), self._number(_U64)
        if of in _SCALARS:
            size = struct.calcsize(_SCALARS[of])
            if n <= _MOST_NUMBERS and of not in _FLOATS:
                self._arrays[key] = struct.unpack(f"<{n}{_SCALARS[of][1:]}", self._bytes(n * size))
            else:
                self._skip(n * size)
        elif of == _STRING:
            if key == "tokenizer.ggml.tokens":
                self._vocabulary = n
            self._skip_strings(n)
        else:
            raise EOFError
        return None

    def _skip_strings(self, n: int) -> None:
        """A vocabulary is some 10**5 strings, so this is written for speed."""
        length, head, width = _U64.unpack_from, self._head, _U64.size
        for _ in range(n):
            if self._at + width > len(head):
                self._need(width)
            end = self._at + width + length(head, self._at)[0]
            if end > len(head):
                self._need(end - self._at)
            self._at = end

    def _tensor(self) -> int:
        """Where the tensor's data ends, in bytes from the data's beginning."""
        name = self._string()
        dimensions = self._number(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise EOFError
        shape = [self._number(_U64) for _ in range(dimensions)]
        kind, offset = self._number(_U32), self._number(_U64)
        block = _BLOCKS.get(kind)
        size = math.prod(shape) * block[0] // block[1] if block else 0
        if match := _LAYER.match(name):
            layer = int(match[1])
            self._layers[layer] = self._layers.get(layer, 0) + size
            if dimensions > 1:
                self._types.add(kind)
        elif name in ("token_embd.weight", "output.weight"):
            self._ends[name] = size, kind
        return offset + size
