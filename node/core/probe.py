"""Whether KV that came from elsewhere is that of the tokens it is said to be of.

Checksums show that bytes arrived as they were sent, not that they are right: a state that is well-formed and wrong (a
sibling model's, another conversation's) loads and answers. So after a restore the last token is computed once more and
its K and V are compared, layer by layer, with those that came. They depend on all that stands before; equal states
differ by rounding alone. Relative distance, the worst layer (bundled model of 4 layers; a random 24-layer one in
Qwen2.5-0.5B's shape with Q8_0 weights):

    the same state                        0.0013      0.031
    another text's, of the same length    1.4         1.5
    moved by one position                 1.5         1.3
    all but the last 64 tokens zero       0.38        1.5
    one block of 64 zero                  0.01, 0.11  0.24
    one layer's K of one block zero       0.0013      0.029

So what is found is a state that is wrong as a whole or in a good part; a single block with other numbers may pass, and
is what checksums are for. The token is computed with those that follow it, so it costs a row of a step and no step.

This is against mistakes. Whoever has the mesh's secret and the model can compute a state that passes, however many
positions are compared, short of computing all of it again; and signatures would not tell, as whoever has the token can
make any node's certificate. Of the lies of scripts/fuzz_snapshots.py that pass and matter, a limit of 0.02 would find
nearly all with the bundled model (84 of 86), but it is less than what rounding makes of deep models; with the model of
two layers hardly any (10 of 129), as most of those are in the last layer, which no K or V depends on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from node.core import blob
from node.core.blob import Bytes

FARTHEST = 0.1


def agrees(found: Bytes, expected: Bytes, window: int, position: int) -> bool:
    """Whether the rows of a position are the same but for rounding in two states, each of which holds it."""
    try:
        (layout, a), (other, b) = blob.read(found, window), blob.read(expected, window)
    except blob.LayoutUnknown:
        return False
    if layout.parts != other.parts:
        return False
    planes = [plane for part in layout.parts for plane in part]
    if not all(rows.first <= position < rows.end for rows in (*a, *b)):
        return False
    pairs = [
        (x[position - p.first], y[position - q.first])
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p.planes, q.planes, strict=True)
    ]
    return all(_distance(x, y, plane.type) <= FARTHEST for plane, (x, y) in zip(planes, pairs, strict=True))


def _distance(found: Bytes, expected: Bytes, kind: int) -> float:
    """The distance of two rows by the length of the expected one; infinite where it is no number."""
    a, b = _values(found, kind), _values(expected, kind)
    distance = float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-9))
    return distance if np.isfinite(distance) else float("inf")


def _values(row: Bytes, kind: int) -> npt.NDArray[np.float32]:
    row = np.ascontiguousarray(row)
    if kind == 0:
        return row.view("<f4").astype(np.float32)
    if kind == 1:
        return row.view("<f2").astype(np.float32)
    if kind == 30:
        return (row.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    blocks = row.reshape(-1, blob.TYPES[kind][0])
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    if kind == 8:
        return (np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * scales).astype(np.float32).ravel()
    quants = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8.0  # q4_0
    return np.asarray(quants * scales, np.float32).ravel()
