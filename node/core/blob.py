"""llama.cpp's sequence state as rows of K and V, and rows as that state again, byte for byte.

The layout is that of `llama_state_seq_get_data` (llama.cpp, src/llama-kv-cache.cpp, state_write; little-endian): a
magic and the sequence's id, then one part, or two for models with a sliding window (the whole cache, then the window):

    u32 streams (1: the KV is unified)   u32 cells
    a cell each:       i32 position, u32 sequences (1), i32 sequence
    u32 V transposed (0: flash attention is on), u32 layers
    a layer's K each:  i32 ggml type, u64 bytes of a row, a row each cell
    a layer's V each:  the same

Rows stand in the order of cells, which is not that of positions. What is read here is our own library's; what is
written is put together from rows that `node.core.snapshot` has checked, so that llama.cpp's loader, which believes
what it reads, sees only what its own writer could have written. A model whose state has another form (M-RoPE,
V transposed, layers without V, other windows than a plain one) is refused with LayoutUnknown: its KV stays at home.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

MAGIC = 0xAF143CD8
_HEAD = struct.Struct("<Ii")
_COUNTS = struct.Struct("<II")
_PLANE = struct.Struct("<iQ")
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_MOST_LAYERS = 1024
_MOST_ROW = 1 << 20
# What a ggml type's numbers are: (bytes of a block, bytes of the float that scales it or is the number).
# ggml/src/ggml-common.h; F32, F16, Q4_0, Q8_0, BF16.
TYPES = {0: (4, 4), 1: (2, 2), 2: (18, 2), 8: (34, 2), 30: (2, 2)}


class LayoutUnknown(ValueError):
    """A state that is not as this file describes it."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The rows of one layer's K or V: their ggml type and the bytes of one."""

    type: int
    row: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model's state looks like. `parts` has the planes of each part, all K first; `window` is the tokens of the
    second part, 0 where there is none."""

    parts: tuple[tuple[Plane, ...], ...]
    window: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's rows in the whole cache."""
        return sum(plane.row for plane in self.parts[0])

    @property
    def window_bytes(self) -> int:
        """Bytes of a token's rows in the window."""
        return sum(plane.row for part in self.parts[1:] for plane in part)

    @property
    def digest(self) -> bytes:
        """16 bytes that differ for layouts that differ."""
        return hashlib.blake2b(repr((self.parts, self.window)).encode(), digest_size=16).digest()

    def window_start(self, tokens: int) -> int:
        """The first position that the window of a sequence of so many tokens holds."""
        return max(0, tokens - self.window)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of positions `first` to `end` of one part, a plane each, in position order."""

    first: int
    planes: tuple[Bytes, ...]

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.first + (self.planes[0].shape[0] if self.planes else 0)

    def cut(self, start: int, end: int) -> Bytes:
        """The bytes of some positions: each plane's rows, one plane after the other."""
        a, b = start - self.first, end - self.first
        if not 0 <= a < b <= self.end - self.first:
            raise ValueError(f"positions {start} to {end} of rows {self.first} to {self.end}")
        out = np.empty((b - a) * sum(p.shape[1] for p in self.planes), dtype=np.uint8)
        at = 0
        for plane in self.planes:
            size = (b - a) * plane.shape[1]
            out[at : at + size] = plane[a:b].ravel()
            at += size
        return out


def read(blob: Bytes, window: int = 0) -> tuple[Layout, tuple[Rows, ...]]:
    """The rows of a state that our own llama.cpp wrote, of a model with a sliding `window` (0: none). Raises
    LayoutUnknown. Rows are views where the cells stand in position order."""
    reader = _Reader(blob)
    magic, sequence = reader.take(_HEAD)
    if magic != MAGIC:
        raise LayoutUnknown(f"its magic is {magic:#x}")
    parts = [reader.part(sequence) for _ in range(2 if window else 1)]
    if reader.at != blob.nbytes:
        raise LayoutUnknown(f"{blob.nbytes - reader.at} bytes follow")
    rows = tuple(rows for _, rows in parts)
    layout = Layout(tuple(planes for planes, _ in parts), window)
    if window and (rows[1].end != rows[0].end or rows[1].first != max(rows[0].first, layout.window_start(rows[0].end))):
        raise LayoutUnknown(f"its window holds {rows[1].first} to {rows[1].end}")
    return layout, rows


@dataclass(frozen=True, slots=True)
class _Run:
    """Planes one after the other with rows of the same size: where the first one's rows begin, and from there the next
    one's. Each copy lets go of the interpreter's lock and has to get it back, so one for all is much less than one each
    where other threads want it too."""

    row: int
    planes: int
    at: int
    stride: int


class Writer:
    """The state of a sequence of so many tokens, put together from blocks in any order.

    `put` may be called from several threads at once, as no two blocks are written to the same place.
    """

    def __init__(self, layout: Layout, tokens: int, sequence: int = 0) -> None:
        self._parts = layout.parts
        self._tokens = tokens
        self._first = [0, layout.window_start(tokens)][: len(layout.parts)]
        cells = [tokens - first for first in self._first]
        sizes = [_size(planes, n) for planes, n in zip(self._parts, cells, strict=True)]
        self._out = np.empty(_HEAD.size + sum(sizes), np.uint8)
        self._spans: list[tuple[int, int, int]] = []  # of blocks that were put: part, first position, end
        self._put(0, _HEAD.pack(MAGIC, sequence))
        self._runs: list[list[_Run]] = []  # of each part
        at = _HEAD.size
        for planes, first, n in zip(self._parts, self._first, cells, strict=True):
            at = self._begin(at, planes, first, n, sequence)

    def _begin(self, at: int, planes: Sequence[Plane], first: int, cells: int, sequence: int) -> int:
        """Write a part's heads; says where the next one begins."""
        self._put(at, _COUNTS.pack(1, cells))
        at += _COUNTS.size
        table = np.empty(cells, _CELL)
        table["position"], table["sequences"], table["sequence"] = np.arange(first, first + cells), 1, sequence
        self._out[at : at + table.nbytes] = table.view(np.uint8)
        at += table.nbytes
        self._put(at, _COUNTS.pack(0, len(planes) // 2))
        at += _COUNTS.size
        runs: list[_Run] = []
        for plane in planes:
            self._put(at, _PLANE.pack(plane.type, plane.row))
            if runs and runs[-1].row == plane.row:
                runs[-1] = replace(runs[-1], planes=runs[-1].planes + 1)
            else:
                runs.append(_Run(plane.row, 1, at + _PLANE.size, _PLANE.size + cells * plane.row))
            at += _PLANE.size + cells * plane.row
        self._runs.append(runs)
        return at

    def _put(self, at: int, packed: bytes) -> None:
        self._out[at : at + len(packed)] = np.frombuffer(packed, np.uint8)

    def put(self, part: int, start: int, data: Bytes) -> None:
        """The rows of a block, as `Rows.cut` gives them. What lies before a window is left out. Raises ValueError if it
        is no block of this state."""
        planes, first = self._parts[part], self._first[part]
        count, rest = divmod(data.nbytes, sum(plane.row for plane in planes))
        if rest or not count or start < 0 or start + count > self._tokens:
            raise ValueError(f"a block of {data.nbytes} bytes at position {start}")
        skip = min(max(first - start, 0), count)
        begin = 0  # of a run's rows, in bytes
        for run in self._runs[part] if skip < count else ():
            size = run.planes * count * run.row
            rows = data[begin : begin + size].reshape(run.planes, -1)[:, skip * run.row :]
            at = run.at + (start + skip - first) * run.row
            self._strided(at, run, rows.shape[1])[:] = rows
            begin += size
        self._spans.append((part, start, start + count))

    def _strided(self, at: int, run: _Run, size: int) -> Bytes:
        """So many bytes from `at` on, and as many at the same place of each plane of a run."""
        return np.ndarray((run.planes, size), np.uint8, self._out.data, at, (run.stride, 1))

    def state(self) -> Bytes:
        """All of it. Raises ValueError if the blocks of a part leave a gap or overlap."""
        for part, first in enumerate(self._first):
            at = None
            for _, start, end in sorted(span for span in self._spans if span[0] == part):
                if start > first if at is None else start != at:
                    raise ValueError(f"a block of positions {start} to {end}")
                at = end
            if at != self._tokens:
                raise ValueError(f"blocks end at {at} and not at {self._tokens}")
        return self._out


def write(layout: Layout, tokens: int, blocks: Sequence[tuple[int, int, Bytes]], sequence: int = 0) -> Bytes:
    """The state of a sequence of so many tokens from blocks (part, first position, bytes as `Rows.cut` gives them).

    The blocks of a part must follow each other without a gap; a first one may begin before the window does. Raises
    ValueError if they do not fit.
    """
    writer = Writer(layout, tokens, sequence)
    for part, start, data in blocks:
        writer.put(part, start, data)
    return writer.state()


def _size(planes: Sequence[Plane], cells: int) -> int:
    head = 2 * _COUNTS.size + cells * _CELL.itemsize
    return head + sum(_PLANE.size + cells * plane.row for plane in planes)


class _Reader:
    """A cursor over a state."""

    def __init__(self, blob: Bytes) -> None:
        self._blob = blob
        self.at = 0

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        values = form.unpack(self.bytes(form.size).tobytes())
        return values

    def bytes(self, n: int) -> Bytes:
        if n > self._blob.nbytes - self.at:
            raise LayoutUnknown("it ends too early")
        self.at += n
        return self._blob[self.at - n : self.at]

    def part(self, sequence: int) -> tuple[tuple[Plane, ...], Rows]:
        streams, cells = self.take(_COUNTS)
        if streams != 1 or not cells:
            raise LayoutUnknown(f"it has {streams} streams and {cells} cells")
        table = self.bytes(cells * _CELL.itemsize).view(_CELL)
        if (table["sequences"] != 1).any() or (table["sequence"] != sequence).any():
            raise LayoutUnknown("its cells are not of one sequence alone")
        transposed, layers = self.take(_COUNTS)
        if transposed or not 0 < layers <= _MOST_LAYERS:
            raise LayoutUnknown(f"V is transposed ({transposed}), or its {layers} layers are too many")
        positions = table["position"]
        order = None if (np.diff(positions) == 1).all() else np.argsort(positions, kind="stable")
        sorted_ = positions if order is None else positions[order]
        first = int(sorted_[0])
        if first < 0 or (np.diff(sorted_) != 1).any():
            raise LayoutUnknown("its positions have gaps")
        planes, rows = [], []
        for _ in range(2 * layers):
            kind, size = self.take(_PLANE)
            if kind not in TYPES or not 0 < size <= _MOST_ROW or size % TYPES[kind][0]:
                raise LayoutUnknown(f"it has rows of {size} bytes of ggml type {kind}")
            values = self.bytes(cells * size).reshape(cells, size)
            planes.append(Plane(kind, size))
            rows.append(values if order is None else values[order])
        return tuple(planes), Rows(first, tuple(rows))
