"""How candidates begin: as forks of their prompt's sequence, at once or later."""

from __future__ import annotations

from collections.abc import Callable

from node.engine.backend import Backend
from node.engine.branch import Branch
from node.engine.draft import Draft, index
from node.engine.logprobs import Logprobs
from node.engine.request import Request
from node.engine.slots import Pool, Slots
from node.engine.stems import Stems, regrow
from node.engine.text import TextStream


class Forks:
    """Begins candidates on sequences of the pool. `drafts` is the limit for tokens that they guess at once."""

    def __init__(
        self, backend: Backend, pool: Pool, slots: Slots, stems: Stems, clock: Callable[[], float], drafts: int
    ) -> None:
        self._backend = backend
        self._pool = pool
        self._slots = slots
        self._stems = stems
        self._clock = clock
        self._drafts = drafts

    def first(self, request: Request) -> None:
        """Begin as many candidates as there are sequences, all from the logits after the prompt."""
        length, waiting = len(request.job.prompt), len(request.waiting)
        first = min(waiting, request.job.wave or waiting)
        # The prompt's own sequence goes to the last one that begins, or is kept for those that wait. If it is the only
        # sequence there is, it is used at once, and the others will have to begin anew from it.
        is_last, has_stem = first == waiting, request.stem >= 0
        forks = min(first - (is_last or has_stem), len(self._pool.free))
        begun = [self._begin(request, fork=length) for _ in range(forks)]
        if (is_last and len(request.waiting) == 1) or has_stem or not any(begun):
            begun.append(self._begin(request, fork=None))
        for branch in filter(None, begun):
            branch.row, branch.position = request.prompt_row, length - 1
        request.prompt_row = -1
        if not request.waiting:
            self._stems.keep(request)

    def later(self, request: Request) -> None:
        """Begin candidates that had to wait, for a sequence or for others to end; they compute the prompt's last token
        again."""
        if request.job.wave and len(request.branches) > request.job.wave // 4:
            return  # one that runs on and on must not hold up the rest
        if request.stem >= 0 and request.base < 0 and request.waiting and self._find_sequence(request):
            request.base = self._pool.free.pop()
            regrow(self._backend, request)
            return
        if request.base < 0 or not request.is_computed:
            return
        last = len(request.job.prompt) - 1
        while request.waiting and self._find_sequence(request):
            branch = self._begin(request, fork=last)
            if branch is None:  # the window before that token is gone: they begin with the prompt computed again
                self._backend.drop(request.base)
                request.computed = 0
                return
            branch.next_token, branch.position = request.job.prompt[last], last
            branch.started = self._clock()
        if not request.waiting:
            self._give_back(request.base)
            request.base = -1

    def _find_sequence(self, request: Request) -> bool:
        """Make sure of a free sequence for a candidate that waits: from an idle topic, else from one that ended."""
        if not self._pool.free and not self._slots.make_room(1, 0) and request.kept:
            self._give_back(request.kept.pop(next(iter(request.kept)))[0])
        return bool(self._pool.free)

    def _begin(self, request: Request, *, fork: int | None) -> Branch | None:
        """Begin the next waiting candidate on a free sequence that shares `fork` tokens of the prompt's, or on the
        prompt's own sequence (None). None if the backend cannot fork there."""
        candidate, seed = request.waiting.popleft()
        params = request.job.params
        sampler = self._backend.sampler(params, seed, request.job.prompt)  # may refuse a grammar: before any sequence
        if fork is not None:
            sequence = self._pool.free.pop()
            if not self._backend.fork(request.base, sequence, fork):
                sampler.close()
                self._pool.free.append(sequence)
                request.waiting.appendleft((candidate, seed))
                return None
        else:
            sequence, request.base = request.base, -1
        branch = Branch(candidate, sequence, sampler, TextStream(params.stop), request.admitted)
        if self._drafts:
            if request.runs is None:
                request.runs = index(request.job.prompt)
            branch.draft = Draft(request.job.prompt, request.runs)
        if params.logprobs:
            branch.logprobs = Logprobs(self._backend, params.top_logprobs)
        request.branches.append(branch)
        return branch

    def _give_back(self, sequence: int) -> None:
        self._backend.drop(sequence)
        self._pool.free.append(sequence)
