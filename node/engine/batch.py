"""The rows of one step: a row for each candidate that writes, its guesses, and a piece of each prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from node.engine.backend import Row
from node.engine.branch import Branch
from node.engine.pace import Pace, Room
from node.engine.request import Request

# The oldest prompt has one part in so many of the room, whatever else comes.
OLDEST = 4


@dataclass(slots=True)
class Batch:
    """Rows to compute. The first `decoding` are of candidates that write."""

    rows: list[Row] = field(default_factory=list)
    decoding: int = 0
    before: int = 0  # tokens before each of the others, summed up

    @property
    def prompt(self) -> int:
        """Rows of prompts."""
        return len(self.rows) - self.decoding

    @property
    def reach(self) -> float:
        """Tokens before a row of a prompt, on average."""
        return self.before / self.prompt if self.prompt else 0.0

    @property
    def sequences(self) -> set[int]:
        """The sequences that it changes."""
        return {row.sequence for row in self.rows}


def fill(running: Collection[Request], pace: Pace, size: int, drafts: int, queued: int = 0) -> Batch:
    """The next step's batch, of at most `size` rows; requests and branches are told which rows are theirs.

    A candidate guesses at most `drafts` tokens. So many requests as are `queued` wait for a sequence.
    """
    batch = Batch()
    writing = guessed = sum(len(request.branches) for request in running)
    for request in running:
        request.batched = 0
        for branch in request.branches:
            branch.row = len(batch.rows)
            # It draws one token more than it guesses right.
            most = min(drafts, request.max_tokens - len(branch.written) - 1, size - guessed)
            branch.guessed = _guess(branch, pace, guessed, writing, most)
            guessed += len(branch.guessed)
            for i, token in enumerate([branch.next_token, *branch.guessed]):
                batch.rows.append(Row(token, branch.position + i, branch.sequence, wants_logits=True))
    batch.decoding = len(batch.rows)
    unfinished = [request for request in running if not request.is_computed]
    room = pace.room(batch.decoding, len(unfinished) + queued, size - batch.decoding)
    # What has least left comes first: it can begin to write, and a short prompt is not kept waiting by a long one. The
    # oldest has its share in any case, so that a long one comes to its end too.
    if len(unfinished) > 1:
        _compute(unfinished[0], batch, pace, room, 1 / OLDEST)
    for request in sorted(unfinished, key=lambda r: len(r.job.prompt) - r.computed):
        _compute(request, batch, pace, room)
    return batch


def undo(running: Collection[Request]) -> None:
    """The batch was not computed: the next one begins where it began."""
    for request in running:
        request.computed -= request.batched
        request.batched, request.prompt_row = 0, -1
        for branch in request.branches:
            branch.row = -1
            branch.guessed = []


def _guess(branch: Branch, pace: Pace, rows: int, writing: int, most: int) -> list[int]:
    """The tokens that a candidate may go on with, as many as are worth their rows."""
    guess = branch.draft.guess(most) if branch.draft is not None and most > 0 else []
    if branch.draft is None or not guess:
        return []
    return guess[: pace.worth(rows, writing, len(guess), branch.draft.chance)]


def _compute(request: Request, batch: Batch, pace: Pace, room: Room, share: float = 1.0) -> None:
    """Add rows of a prompt, as far as there is room."""
    start, prompt = request.computed, request.job.prompt
    if start in request.stops:
        return  # with this batch it comes to where it stops
    row_s = pace.row_s(start)
    end = min(start + room.fits(row_s, share), *(at for at in request.stops if at > start), len(prompt))
    room.take(end - start, row_s)
    batch.rows += [Row(prompt[i], i, request.base, i == len(prompt) - 1) for i in range(start, end)]
    batch.before += (start + end - 1) * (end - start) // 2
    request.computed = end
    request.batched += end - start
    if end == len(prompt) > start:
        request.prompt_row = len(batch.rows) - 1
