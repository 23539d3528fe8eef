"""What candidates wrote and nobody has been told of yet.

Each piece of text is a message to whoever reads it, and costs this machine some 0.3 ms (and one that asks from here as
much again) of a core that computes the next step. While few write, that is nothing beside a step. While more do, what
a request's candidates write is told ten times a second, which reads as flowing; its first text is never held back, and
neither is what comes with the end of a candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from node.engine.job import Text
from node.types import TokenLogprob

FEW = 4  # candidates that write at once
TOGETHER_S = 0.1


@dataclass(slots=True)
class Untold:
    """Of one request: (candidate id, text or tokens) each, in order."""

    pieces: list[tuple[int, str]] = field(default_factory=list)
    logprobs: list[tuple[int, tuple[TokenLogprob, ...]]] = field(default_factory=list)
    told: float = -math.inf  # when somebody was told last, in seconds of the scheduler's clock

    def tell(self, job: str, now: float, writing: int, *, is_last: bool = False) -> list[Text]:
        """The event that tells it, if it is time, while so many candidates write; `is_last`: one of them has ended."""
        if not (self.pieces or self.logprobs):
            return []
        if writing > FEW and now < self.told + TOGETHER_S and not is_last:
            return []
        text = Text(job, tuple(self.pieces), tuple(self.logprobs))
        self.clear()
        self.told = now
        return [text]

    def clear(self) -> None:
        """Nobody is going to be told."""
        self.pieces.clear()
        self.logprobs.clear()
