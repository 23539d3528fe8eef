"""A node with one decision changed, as the other half of a comparison.

    python -m scripts.bench.variant lru …       copies leave memory by plain LRU
    python -m scripts.bench.variant shared …    idle topics stay in the one context
    python -m scripts.bench.variant equal …     no record of models is learnt: all weigh the same

What follows is the node's own command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from node.__main__ import main
from node.core import record
from node.core import slots as decisions
from node.core.slots import Held, Speeds
from node.engine import slots


def _lru(held: Sequence[Held], turn: int, speeds: Speeds, *, keeps_copy: bool) -> list[Held]:
    return sorted(held, key=lambda h: h.used)


if __name__ == "__main__":
    variant = sys.argv.pop(1)
    if variant == "lru":
        decisions._by_value = _lru
    elif variant == "shared":
        slots.IDLE_CELLS = 1 << 40
    elif variant == "equal":
        record.learn = lambda *_: {}
    else:
        sys.exit(f"{variant}: lru, shared or equal")
    sys.exit(main())
