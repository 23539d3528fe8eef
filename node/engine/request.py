"""A job on its way through the scheduler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from node.engine.branch import Branch
from node.engine.job import Job
from node.engine.slots import Trial
from node.engine.untold import Untold

PROMPT_ONLY = 0  # no candidate has this id


@dataclass(slots=True, eq=False)
class Request:
    """A job on its way. `base` is the sequence that holds the prompt while candidates may still fork from it."""

    job: Job
    submitted: float
    max_tokens: int
    waiting: deque[tuple[int, int]]  # candidates that have not begun
    base: int = -1
    cached: int = 0  # prompt tokens that were held
    trial: Trial | None = None  # what is held came from another node, and is not known to be right yet
    computed: int = 0  # prompt tokens in `base`
    batched: int = 0  # of these, in the current batch
    prompt_row: int = -1  # row of the current batch with the logits after the prompt
    admitted: float = 0.0
    was_prefilled: bool = False
    branches: list[Branch] = field(default_factory=list)
    kept: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # ended: (sequence, its tokens)
    held_since: float = 0.0
    untold: Untold = field(default_factory=Untold)
    ballots: int | None = None  # that may decide its vote, if somebody has said so
    runs: dict[tuple[int, ...], int] | None = None  # of the prompt, once tokens are guessed
    # Of a model with recurrent layers (`node.engine.stems`): prompt tokens at which its computing stops for a moment.
    stops: set[int] = field(default_factory=set)
    stem_at: int = 0
    stem: int = -1  # sequence that holds the first `stem_at` of them

    @property
    def cells(self) -> int:
        """KV cells that it may need at most."""
        return len(self.job.prompt) + len(self.job.candidates) * (self.max_tokens + self.tail)

    @property
    def tail(self) -> int:
        """Tokens of the prompt that candidates which begin later compute again."""
        return len(self.job.prompt) - self.stem_at if self.stem_at else 0

    @property
    def is_computed(self) -> bool:
        """Whether `base` holds the whole prompt, or will after this batch."""
        return self.computed == len(self.job.prompt)

    @property
    def to_decide(self) -> int:
        """Candidates that have to end before its vote may be over."""
        left = len(self.waiting) + len(self.branches)
        return left if self.ballots is None else min(left, self.ballots)
