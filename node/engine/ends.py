"""How candidates end: the KV of those that may win is kept until somebody says who won, the rest is given back.

A branch's sequence holds exactly `position` tokens between two steps: the token sampled last was not computed.
"""

from __future__ import annotations

from collections.abc import Callable

from node.engine.backend import Backend
from node.engine.branch import Branch
from node.engine.job import Done
from node.engine.request import PROMPT_ONLY, Request
from node.engine.slots import Pool
from node.engine.stems import regrow
from node.types import FinishReason


class Ends:
    """Ends candidates, whose sequences come from the pool. `node` is written into them."""

    def __init__(self, backend: Backend, pool: Pool, clock: Callable[[], float], node: str) -> None:
        self._backend = backend
        self._pool = pool
        self._clock = clock
        self._node = node

    def finish(self, request: Request, branch: Branch, reason: FinishReason) -> Done:
        """A candidate writes no more."""
        request.branches.remove(branch)
        branch.sampler.close()
        self._keep_kv(request, branch, reason)
        return Done(request.job.id, branch.candidate(self._node, reason, self._clock()))

    def _keep_kv(self, request: Request, branch: Branch, reason: FinishReason) -> None:
        """Keep the sequence of a candidate that may win; of one that was stopped, the prompt, if nothing else has
        it."""
        prompt = request.job.prompt
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            request.kept[branch.id] = branch.sequence, (*prompt, *branch.written)[: branch.position]
            if PROMPT_ONLY in request.kept:
                self._give_back(request.kept.pop(PROMPT_ONLY)[0])
            return
        length = min(len(prompt), branch.position)
        if length and not request.kept and self._backend.truncate(branch.sequence, length):
            request.kept[PROMPT_ONLY] = branch.sequence, prompt[:length]
        else:
            self._give_back(branch.sequence)

    def restart(self, request: Request) -> None:
        """The only sequence has ended while candidates wait: they begin again from the prompt's end."""
        last = len(request.job.prompt) - 1
        if not request.kept:
            request.base = self._pool.free.pop()
            regrow(self._backend, request)
            return
        request.base, _ = request.kept.pop(next(iter(request.kept)))
        if last and self._backend.truncate(request.base, last):
            request.computed = last
        else:
            self._backend.drop(request.base)
            regrow(self._backend, request)

    def last(self, request: Request) -> None:
        """All candidates have ended: what the prompt's own sequence holds is kept if there is nothing better."""
        if request.base >= 0:
            if not request.kept and request.computed and request.trial is None:
                request.kept[PROMPT_ONLY] = request.base, request.job.prompt[: request.computed]
            else:
                self._give_back(request.base)
            request.base = -1

    def fail(self, request: Request) -> None:
        """Give back all that a request has: its KV is not to be trusted."""
        for branch in request.branches:
            branch.sampler.close()
        sequences = [b.sequence for b in request.branches] + [s for s, _ in request.kept.values()]
        sequences += [request.base, request.stem]
        for sequence in sequences:
            if sequence >= 0:
                self._give_back(sequence)
        self._pool.cells += request.cells

    def _give_back(self, sequence: int) -> None:
        self._backend.drop(sequence)
        self._pool.free.append(sequence)
