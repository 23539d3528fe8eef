"""A model over several nodes: which holds which of its layers.

llama.cpp computes layers one after another, each where its weights and its part of the KV cache are, so a step costs
one round trip for each node that lends. This machine keeps the first layers, what comes before and after them (the
token embeddings and the output), and the sampling. Then come the lenders, as few as suffice: more would be slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.core.shape import (
    EMBED_ROWS,
    UBATCH,
    Shape,
    compute_bytes,
    embedding_buffers,
    embedding_cells,
    kv_bytes_per_cell,
    most_outputs,
    padded,
    state_bytes,
)

GIB = 1 << 30
MOST_LENDERS = 15  # ggml-rpc.h: GGML_RPC_MAX_SERVERS is 16
# What a server process takes besides: graphs and messages on their way (a few MiB were measured), rounded up.
SLACK = 32 << 20
_F32 = 4


@dataclass(frozen=True, slots=True)
class Offer:
    """Memory that a node lends."""

    node: str
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a node holds: layers from `first` to before `last`, with their KV cache and buffers `bytes` in all. `node`
    is empty for this machine."""

    node: str
    name: str
    first: int
    last: int
    bytes: int

    @property
    def layers(self) -> int:
        """How many."""
        return self.last - self.first

    @property
    def which(self) -> str:
        """The layers, for a person."""
        if self.layers < 2:
            return f"layer {self.first}" if self.layers else "no layers"
        return f"layers {self.first} to {self.last - 1}"

    def __str__(self) -> str:
        return f"{self.which} {f'on {self.name}' if self.node else 'here'} ({self.bytes / GIB:.2f} GiB)"


def spread(
    shape: Shape,
    cells: int,
    sequences: int,
    kv_type: str,
    here: int,
    offers: Sequence[Offer],
    *,
    even: bool = False,
) -> tuple[Share, ...]:
    """This machine's share first, then those of lenders; empty if all together are too small.

    This machine takes as many layers as fit into `here` bytes, and the lenders the rest, the largest first; with `even`
    everyone takes the same part, or what it has memory for.
    """
    embedding = embedding_cells(shape)
    costs = [
        shape.layer_bytes[i]
        + kv_bytes_per_cell(shape, kv_type, layer=i) * padded(cells)
        + kv_bytes_per_cell(shape, "f16", layer=i) * embedding
        + state_bytes(shape, sequences + 1, layer=i)
        for i in range(shape.layers)
    ]
    own = shape.input_bytes * (2 if shape.copies_input else 1) + shape.output_bytes
    own += compute_bytes(shape, cells, padded(cells), most_outputs(sequences), UBATCH, sequences)
    own += sequences * shape.vocabulary * _F32
    own += embedding_buffers(shape)
    lent = compute_bytes(shape, cells, padded(cells), 0, UBATCH, sequences) + SLACK
    lent += compute_bytes(shape, embedding, embedding, 0, EMBED_ROWS)
    lenders = sorted(offers, key=lambda o: (-o.bytes, o.node))[:MOST_LENDERS]
    rooms = [here - own, *(o.bytes - lent for o in lenders)]
    if rooms[0] < 0:
        return ()
    counts = _evenly(costs, rooms) if even else None
    counts = counts or _filled(costs, rooms)
    if counts is None:
        return ()
    shares, at = [], 0
    for i, count in enumerate(counts):
        if count or i == 0:
            node, name = (lenders[i - 1].node, lenders[i - 1].name) if i else ("", "")
            shares.append(Share(node, name, at, at + count, sum(costs[at : at + count]) + (lent if i else own)))
        at += count
    return tuple(shares)


def _filled(costs: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """Layers a room when each is filled before the next; None if some are left over."""
    counts, at = [], 0
    for room in rooms:
        before, left = at, room
        while at < len(costs) and costs[at] <= left:
            left -= costs[at]
            at += 1
        counts.append(at - before)
    return counts if at == len(costs) else None


def _evenly(costs: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """Layers a room, the same in all, or less where there is less room; None if that cannot be."""
    wanted = [max(room, 0) for room in rooms]
    for _ in costs:
        counts = _divided(costs, _levelled(sum(costs), wanted))
        at, fits = 0, True
        for i, count in enumerate(counts):
            if sum(costs[at : at + count]) > rooms[i]:  # it is whole layers: one less, then
                wanted[i], fits = max(min(wanted[i], sum(costs[at : at + count])) - max(costs), 0), False
            at += count
        if fits:
            return counts
    return None


def _levelled(total: int, rooms: Sequence[int]) -> list[int]:
    """Equal parts of a total, but for rooms that are smaller than theirs: they are filled, and the others take more."""
    parts, left = [0] * len(rooms), total
    for n, i in enumerate(sorted(range(len(rooms)), key=rooms.__getitem__)):
        parts[i] = min(rooms[i], -(-left // (len(rooms) - n)))
        left -= parts[i]
    return parts


def _divided(costs: Sequence[int], parts: Sequence[int]) -> list[int]:
    """Layers in sequence for parts of these sizes: the middle of a layer says whose it is."""
    total, space = sum(costs), max(sum(parts), 1)
    counts, before, i, end = [0] * len(parts), 0, 0, parts[0] * total
    for cost in costs:
        while (2 * before + cost) * space > 2 * end and i + 1 < len(parts):  # integers: nothing depends on rounding
            i += 1
            end += parts[i] * total
        counts[i] += 1
        before += cost
    return counts
