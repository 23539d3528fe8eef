"""`models plan` of a model that is too big for this machine: over nodes that lend memory."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from dataclasses import asdict

from node.cli import reach, render
from node.core.plan import LEAST_SLOTS, Room
from node.core.shape import CONTEXT, Shape, cells_for, kv_bytes_per_cell
from node.core.spread import GIB, Offer, spread
from node.errors import ConclaveError, NotFound


def run(options: Namespace, wanted: Shape, room: Room) -> int:
    """Show who would hold what. Raises NotFound if all together are too small."""
    offers = _stated(options.lent) if options.lent else [] if options.memory else _offered()
    context = min(CONTEXT, wanted.context or CONTEXT)
    cells = cells_for(LEAST_SLOTS, context, kv_bytes_per_cell(wanted, "f16"))
    shares = spread(wanted, cells, LEAST_SLOTS, "f16", room.usable, offers)
    why = (
        f"{wanted.name} {wanted.quantization} does not fit: {wanted.weight_bytes / GIB:.1f} GiB of weights, "
        f"KV and buffers beside them, and {room.usable / GIB:.1f} GiB may be used ({room.rule})"
    )
    if not shares:
        lent = f"; others lend {sum(o.bytes for o in offers) / GIB:.1f} GiB" if offers else ""
        raise NotFound(f"{why}{lent}; nodes that are started with --pool can hold a part of it")
    if options.json:
        said = {"plan": None, "spread": [asdict(share) for share in shares], "memory": asdict(room)}
        print(json.dumps(said, ensure_ascii=False, indent=2))
    else:
        print(f"{why}\nover nodes that lend memory, {LEAST_SLOTS} slots of {context} tokens:")
        print("\n".join(f"  {render.one_line(str(share), 200)}" for share in shares))
    return 0


def _stated(sizes: tuple[int, ...]) -> list[Offer]:
    return [Offer(f"lender-{i}", f"lender {i}", size) for i, size in enumerate(sizes, 1)]


def _offered() -> list[Offer]:
    """What is lent now, as a node of this machine knows it."""
    if not reach.local_addresses():
        return []
    with contextlib.suppress(ConclaveError):
        found = [n for n in reach.status(None).nodes if n.lends_bytes and not n.lent_to and n.state == "alive"]
        return [Offer(n.id, n.name or n.id, n.lends_bytes) for n in found]
    return []
