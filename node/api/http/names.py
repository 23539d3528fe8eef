"""Model names, which carry how an answer is found.

conclave              a vote over the mesh, with the node's strategy and number of candidates
conclave:fast         the first answer to finish
conclave:majority-9   a vote by that strategy, with that many candidates; either may be left out
the model's own name  one candidate of this node, streamed as it is written
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from node.errors import NotFound
from node.types import Strategy

VOTE = "conclave"
_STRATEGIES = {"fast": Strategy.FASTEST} | {s.value: s for s in Strategy}
_MODE = re.compile(r"(?P<strategy>[a-z]+)?(?:(?:^|-)(?P<candidates>[0-9]{1,2}))?")
MAX_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Mode:
    """What a model name asks for. `strategy` None and `candidates` 0 are the node's own."""

    is_vote: bool
    strategy: Strategy | None = None
    candidates: int = 0


def mode(name: str, model: str) -> Mode:
    """What a model name means on a node with this model; empty is a vote. Raises NotFound."""
    if name == model:
        return Mode(is_vote=False)
    if name in ("", VOTE):
        return Mode(is_vote=True)
    head, _, rest = name.partition(":")
    found = _MODE.fullmatch(rest) if head == VOTE and rest else None
    if found is not None:
        strategy, candidates = found["strategy"], int(found["candidates"] or 0)
        known = strategy is None or strategy in _STRATEGIES
        if known and not 1 <= int(found["candidates"] or 1) <= MAX_CANDIDATES:
            raise NotFound(f"model {name!r} does not exist here: 1 to {MAX_CANDIDATES} candidates may vote")
        if known:
            return Mode(True, _STRATEGIES[strategy] if strategy else None, candidates)
    raise NotFound(
        f"model {name[:80]!r} does not exist here: there are {', '.join(listed(model))}; "
        f"a number of candidates may follow, as in conclave:majority-9"
    )


def listed(model: str) -> list[str]:
    """The names that /v1/models lists."""
    votes = [s.value for s in Strategy if s not in (Strategy.AUTO, Strategy.FASTEST)]
    return [VOTE, f"{VOTE}:fast", *(f"{VOTE}:{s}" for s in votes), model]
