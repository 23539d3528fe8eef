"""What a model with recurrent layers goes on from, beside the ends of its topics.

Such a model's state is of a fixed size: it is that of its last token, and no way leads back (`ModelInfo.is_recurrent`).
So while a prompt is computed, it stops where others may want to begin, and a sequence keeps the state of that place:

    the stem    before the tokens that ask for an answer ("<|im_start|>assistant" and the like). Candidates that begin
                later go on from there, and so does the next turn where the answer comes back as other tokens than were
                written: its thoughts left out, another node's, edited.
    a branch    where another topic went another way, after an equal system prompt. Others that begin so go on from it.

Ends of answers and these two are what is kept of the states for prefix caching by Marconi too (Pan et al., 2025).
llama-server keeps copies of states before the end of a prompt and every so many tokens ("context checkpoints"). A state
on a sequence costs nothing until it is used: llama.cpp shares it and the KV of the other layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from node.core.slots import MIN_SHARED
from node.engine.backend import Backend
from node.engine.request import Request
from node.engine.slots import SHARED, Pool, Slots, stem_of

TAIL = 32  # tokens at the end of a prompt in which the last control token is looked for
# Tokens that a branch must save whoever comes next: it costs a step of its own, and room.
WORTH = 64


class Stems:
    """Keeps states on sequences of the pool while prompts are computed. Does nothing for other models."""

    def __init__(self, backend: Backend, pool: Pool, slots: Slots) -> None:
        self._backend = backend
        self._pool = pool
        self._slots = slots

    def place(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that its stem has; 0: it has none."""
        if not self._backend.info.is_recurrent:
            return 0
        last = len(prompt) - 1
        controls = (i for i in range(last, max(last - TAIL, 0), -1) if self._is_control(prompt[i]))
        at = next(controls, last)
        return at if at >= MIN_SHARED else 0

    def _is_control(self, token: int) -> bool:
        try:
            return not self._backend.piece(token)
        except IndexError:  # no token: whoever computes it says so
            return False

    def plan(self, request: Request) -> None:
        """Say where a request that was let in stops, now that it is known what it begins from."""
        if not self._backend.info.is_recurrent:
            return
        branch = self._slots.branch(request.job.topic, request.job.prompt)
        if branch < request.cached + WORTH or branch >= request.stem_at:
            branch = 0
        request.stops = {at for at in (branch, request.stem_at) if at and at >= request.computed}

    def take(self, running: Iterable[Request]) -> None:
        """Keep the states of requests that stopped. Where no sequence is to be had, they go on without."""
        for request in running:
            at = request.computed
            if request.base < 0 or at not in request.stops:
                continue
            request.stops.discard(at)
            if not (self._pool.free or self._slots.make_room(1, 0)):
                continue
            sequence = self._pool.free.pop()
            if not self._backend.fork(request.base, sequence, at):
                self._pool.free.append(sequence)
            elif at == request.stem_at:
                request.stem = sequence
            else:
                tokens = request.job.prompt[:at]
                self._keep(f"{SHARED}{hash(tokens)}", sequence, tokens)

    def keep(self, request: Request, topic: str = "") -> None:
        """A request's candidates have all begun: its stem is for the next turn of its topic."""
        sequence, request.stem = request.stem, -1
        if sequence >= 0:
            name = stem_of(request.job.topic or topic or request.job.id)
            self._keep(name, sequence, request.job.prompt[: request.stem_at])

    def _keep(self, name: str, sequence: int, tokens: Sequence[int]) -> None:
        """Hold a state as a topic's, unless there is no room: whoever runs needs it more."""
        if self._pool.cells >= len(tokens):
            self._slots.keep(name, sequence, tokens)
        else:
            self._backend.drop(sequence)
            self._pool.free.append(sequence)


def regrow(backend: Backend, request: Request) -> None:
    """A request's base is empty: it begins again from its stem, else from nothing."""
    has_stem = request.stem >= 0 and backend.fork(request.stem, request.base, request.stem_at)
    request.computed = request.stem_at if has_stem else 0
