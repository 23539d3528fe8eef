"""Model names, which carry how an answer is found.

conclave              a vote over the mesh, with the node's strategy and number of candidates
conclave:fast         the first answer to finish
conclave:majority-9   a vote by that strategy, with that many candidates; either may be left out
a model's own name    one candidate of that model, streamed as it is written: of this node if it has the model, else
                      of a node that does

Programs that know a name from Ollama's API add `:latest` to it, and ask for it over OpenAI's as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from node.errors import NotFound
from node.types import Strategy

VOTE = "conclave"
LATEST = ":latest"
_STRATEGIES = {"fast": Strategy.FASTEST} | {s.value: s for s in Strategy}
_MODE = re.compile(r"(?P<strategy>[a-z]+)?(?:(?:^|-)(?P<candidates>[0-9]{1,2}))?")
MAX_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Mode:
    """What a model name asks for. `strategy` None and `candidates` 0 are the node's own; `model` is another node's."""

    is_vote: bool
    strategy: Strategy | None = None
    candidates: int = 0
    model: str = ""


def mode(name: str, model: str, others: Collection[str] = ()) -> Mode:
    """What a model name means on a node with this model, in a mesh with others; empty is a vote. Raises NotFound."""
    if name not in (model, *others, LATEST):
        name = name.removesuffix(LATEST)
    if name == model:
        return Mode(is_vote=False)
    if name in others:
        return Mode(is_vote=False, model=name)
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
        f"model {name[:80]!r} does not exist here: there are {', '.join(listed(model, others))}; "
        f"a number of candidates may follow, as in conclave:majority-9"
    )


def listed(model: str, others: Collection[str] = ()) -> list[str]:
    """The names that /v1/models lists, the node's own model last: nodes with `--backend openai` take that one."""
    votes = [s.value for s in Strategy if s not in (Strategy.AUTO, Strategy.FASTEST)]
    return [VOTE, f"{VOTE}:fast", *(f"{VOTE}:{s}" for s in votes), *sorted(others), model]
