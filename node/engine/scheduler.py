"""Continuous batching, pure over a `Backend`: no thread, no asyncio, time by the clock that is passed in.

`Scheduler.step` is the whole engine in four moves:

    admit      requests leave the queue while sequences and KV cells are free
    batch      one row for each running candidate, then a chunk of prompts that are not computed yet
    decode     the backend computes the rows
    sample     each row with logits becomes a token of a candidate, or several first tokens of a fresh fork

A prompt begins from the longest prefix that is held (`node.engine.slots`); the rest is computed once, in the sequence
that its first candidate goes on with; the other candidates fork from it and draw their first tokens from the same
logits. Where a request has more candidates than there are free sequences, the prompt's sequence is kept and the rest
fork from it as sequences become free.

Where what a candidate writes was there before (`node.engine.draft`) and more rows are cheap (`node.engine.pace`), the
tokens that followed then are computed in the same step as guesses; as many are kept as the candidate draws itself.

KV cells are reserved at admission for the worst case (prompt + candidates x max_tokens), so a running request is never
put out for want of cells. A candidate that ended keeps its sequence until `commit` says who won: the winner's KV is
then kept for its topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

from node.core.slots import Speeds
from node.engine import batch
from node.engine.admission import Admission
from node.engine.backend import Backend, CacheFull, StateLost
from node.engine.batch import Batch
from node.engine.branch import Branch
from node.engine.ends import Ends
from node.engine.forks import Forks
from node.engine.job import Done, Ended, Event, Failed, Job, Prefilled, Prefilling, Text, derive_seed, job
from node.engine.pace import MEASURED_ROWS, Pace
from node.engine.request import PROMPT_ONLY, Request
from node.engine.shelf import Shelf
from node.engine.slots import Pool, Slots
from node.engine.stems import Stems
from node.engine.undecided import Undecided
from node.engine.waiting import Waiting
from node.errors import BackendError, ConclaveError, InvalidRequest, Overloaded
from node.types import Candidate, FinishReason

__all__ = [
    "PROMPT_ONLY",
    "Done",
    "Ended",
    "Event",
    "Failed",
    "Job",
    "Prefilled",
    "Prefilling",
    "Scheduler",
    "Text",
    "derive_seed",
    "job",
]


class Scheduler:
    """Requests in, events out, one step at a time. `node` is written into the candidates.

    `memory` is the limit in bytes for the KV of topics that are parked outside the context; `shelf` takes more.
    `drafts` is the limit for tokens that are guessed at once; 0: none are.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Callable[[], float],
        *,
        queue_limit: int = 64,
        node: str = "",
        memory: int = 0,
        shelf: Shelf | None = None,
        drafts: int = 0,
        speeds: Speeds | None = None,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._node = node
        self._drafts = drafts if backend.info.rolls_back else 0
        self._queue = Waiting(queue_limit)
        self._running: dict[str, Request] = {}
        self._pool = Pool(backend.info.sequences, backend.info.cells)
        self.slots = Slots(backend, self._pool, memory=memory, shelf=shelf, clock=clock, speeds=speeds)
        self._stems = Stems(backend, self._pool, self.slots)
        self._forks = Forks(backend, self._pool, self.slots, self._stems, clock, self._drafts)
        self._ended = Undecided(backend, self._pool, self.slots, self._stems)  # waiting for `commit`
        self._admission = Admission(self._pool, self.slots, self._ended)
        self._ends = Ends(backend, self._pool, clock, node)
        self.pace = Pace(self.slots.speeds.prefill_s, is_measured=self.slots.speeds.is_measured)
        self.decoded_tokens = 0
        self.prefilled_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._queue and not self._running

    @property
    def free_sequences(self) -> int:
        """Sequences that no running candidate has; some hold KV that would make room."""
        return len(self._pool.free) + self.slots.resident + self._ended.sequences

    @property
    def _writing(self) -> int:
        """Candidates that write and whose text somebody may read."""
        return sum(len(r.branches) for r in self._running.values() if not r.job.is_polled)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises InvalidRequest if it can never run, Overloaded if the queue is full."""
        info = self._backend.info
        n = len(job.prompt)
        if n == 0:
            raise InvalidRequest("the prompt is empty: it has no tokens")
        if n >= info.context:
            raise InvalidRequest(
                f"the prompt is {n} tokens and a sequence holds {info.context}: shorten it, or start the node with a "
                f"larger --ctx"
            )
        self._queue.check()
        # A candidate may fill its sequence; all of them together may not need more cells than there are.
        request = Request(job, self._clock(), job.params.max_tokens, deque(job.candidates))
        each = (info.cells - n) // len(job.candidates)
        stem_at = self._stems.place(job.prompt)
        request.stem_at = stem_at if each > n - stem_at else 0
        room = min(info.context - n, each - request.tail)
        if room < 1:
            raise InvalidRequest(
                f"{len(job.candidates)} candidates after a prompt of {n} tokens do not fit {info.cells} KV cells: ask "
                f"for fewer, or start the node with a larger --ctx"
            )
        request.max_tokens = min(job.params.max_tokens, room)
        self._queue.add(request)

    def cancel(self, job: str, candidates: Collection[int] | None = None) -> list[Event]:
        """Stop candidates of a job (all if None); their sequences are free at once. Unknown ids are ignored."""
        for request in self._queue:
            if request.job.id == job:
                return self._cancel(request, candidates)
        running = self._running.get(job)
        return self._cancel(running, candidates) if running else []

    def commit(self, job: str, winner: int = PROMPT_ONLY, topic: str = "") -> None:
        """Say who won an ended job: that candidate's KV is kept for its topic, or the prompt's if it won elsewhere.
        `topic` is whose it is where the job names none.

        Unknown jobs are ignored: theirs may have been let go for want of room.
        """
        self._ended.commit(job, winner, topic)

    def expect(self, job: str, ballots: int) -> None:
        """Say that so many more ballots may decide the vote that a job is for. Unknown jobs are ignored."""
        request = self._running.get(job)
        if request is not None:
            request.ballots = ballots

    def step(self) -> list[Event]:
        """Admit, batch, decode, sample. Never raises for what one request did."""
        now = self._clock()
        events = self._expire(now) + self._admit(now)
        computed, failed = self._decode()
        events += failed
        if not computed:
            return events
        for request in list(self._running.values()):
            try:
                self._try(request)
                events += self._sample(request)
            except ConclaveError as e:
                events += self._fail(request, e)
        return events

    def rest(self) -> bool:
        """Do a little of what can wait, between two steps. Says whether there was anything."""
        return self.slots.rest()

    def close(self) -> list[Event]:
        """Stop everything, for shutdown."""
        return [e for request in [*self._queue, *self._running.values()] for e in self._cancel(request, None)]

    def abandon(self, error: ConclaveError) -> list[Event]:
        """Fail every running request: the state of the last batch is not known."""
        return [e for request in list(self._running.values()) for e in self._fail(request, error)]

    # ---- admit ------------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> list[Event]:
        events: list[Event] = []
        # A vote that is nearly decided gets what it still needs first, then others, then what has not begun.
        for request in sorted(self._running.values(), key=lambda r: r.to_decide):
            try:
                self._forks.later(request)
            except ConclaveError as e:
                events += self._fail(request, e)
        while (first := self._queue.first(self._running.values())) and self._admission.enter(first):
            self._queue.remove(first)
            first.admitted = now
            self._running[first.job.id] = first
            self._stems.plan(first)
        return events

    # ---- decode -----------------------------------------------------------------------------------------------------

    def _decode(self) -> tuple[bool, list[Event]]:
        """Compute a batch; says whether there was one. Where that fails, each that was in it is tried alone."""
        events: list[Event] = []
        size, running = self._backend.info.batch, self._running.values()
        self._stems.take(running)
        while (next_batch := batch.fill(running, self.pace, size, self._drafts, self.queued)).rows:
            started = self._clock()
            try:
                self._backend.decode(next_batch.rows)
            except CacheFull:  # nothing was changed: what is idle makes room, else the request that came last
                batch.undo(running)
                if not self._free_cells():
                    last = next(reversed(self._running.values()))
                    why = "no KV cells are left: try again later, or start the node with a larger --ctx"
                    events += self._fail(last, Overloaded(why))
            except StateLost as e:
                return False, events + self.abandon(e)
            except BackendError as e:
                return False, events + self._isolate(next_batch, e)
            else:
                took = self._clock() - started
                self.pace.saw(next_batch.decoding, next_batch.prompt, took, next_batch.reach)
                was = self.slots.speeds
                known = was.is_measured or next_batch.prompt >= MEASURED_ROWS
                self.slots.speeds = replace(was, prefill_s=self.pace.prefill_s, is_measured=known)
                return True, events
        return False, events

    def _isolate(self, failed: Batch, error: BackendError) -> list[Event]:
        """After a batch that failed, of which some rows may have been computed: those that were in it go back to where
        they were and compute their rows alone, so that one which makes llama.cpp fail does not cost the others."""
        events: list[Event] = []
        running, batched = list(self._running.values()), failed.sequences
        suspects = [r for r in running if r.base in batched or any(b.sequence in batched for b in r.branches)]
        batch.undo(running)
        for request in suspects:
            if len(suspects) == 1 or not self._go_back(request):
                events += self._fail(request, error)
                continue
            try:
                alone = batch.fill([request], self.pace, self._backend.info.batch, 0)
                self._backend.decode(alone.rows)
                events += self._sample(request)
            except CacheFull:  # nothing was changed: as any other in the next step
                batch.undo([request])
            except StateLost as e:
                return events + self.abandon(e)
            except ConclaveError as e:
                events += self._fail(request, e)
        return events

    def _go_back(self, request: Request) -> bool:
        """Take back what a failed batch may have computed of a request. False where that cannot be done."""
        if request.trial is not None:
            return False
        held = [(branch.sequence, branch.position) for branch in request.branches]
        if request.base >= 0:
            held.append((request.base, request.computed))
        for sequence, length in held:
            if not length:
                self._backend.drop(sequence)
            elif not self._backend.truncate(sequence, length):
                return False
        return True

    def _free_cells(self) -> bool:
        """Let KV go that no running request needs. Says whether there was any."""
        return self._ended.commit_oldest() or self.slots.make_room(0, self._pool.cells + 1)

    def _try(self, request: Request) -> None:
        """KV of another node that a request began from: where it turns out to be wrong, it begins anew from nothing."""
        trial = request.trial
        if trial is None or request.base < 0 or request.computed < len(trial.tokens):
            return
        request.trial = None
        if not self.slots.settle(trial, request.base):
            self._backend.drop(request.base)
            request.computed = request.cached = 0
            request.prompt_row = -1

    # ---- sample -----------------------------------------------------------------------------------------------------

    def _sample(self, request: Request) -> list[Event]:
        events: list[Event] = []
        if request.prompt_row >= 0:
            self._forks.first(request)
            if not request.was_prefilled:
                events.append(self._prefilled(request))
        elif request.batched and not request.is_computed and not request.was_prefilled:
            job = request.job
            events.append(Prefilling(job.id, request.computed, request.cached, len(job.prompt)))
        untold = request.untold
        done: list[Done] = []
        for branch in list(request.branches):
            if branch.row >= 0:
                done += self._advance(request, branch, untold.pieces)
                branch.row = -1
                if branch.logprobs is not None and (news := branch.logprobs.news()):
                    untold.logprobs.append((branch.id, news))
        if request.job.is_polled:
            untold.clear()
        events += untold.tell(request.job.id, self._clock(), self._writing, is_last=bool(done))
        if len(done) > 1:
            done = [replace(each, more=len(done) - 1 - i) for i, each in enumerate(done)]
        return events + done + (self._settle(request) if done else [])

    def _prefilled(self, request: Request) -> Event:
        request.was_prefilled = True
        tokens = len(request.job.prompt)
        self.prefilled_tokens += tokens - request.cached
        queued, computed = request.admitted - request.submitted, self._clock() - request.admitted
        return Prefilled(request.job.id, tokens, request.cached, queued * 1e3, computed * 1e3)

    def _advance(self, request: Request, branch: Branch, pieces: list[tuple[int, str]]) -> list[Done]:
        """Draw a candidate's next token, and one more after each that was guessed right."""
        computed = branch.position + 1 + len(branch.guessed)
        reason = self._draw(request, branch, pieces)
        for guess in branch.guessed:
            if reason is not None or branch.next_token != guess:
                break
            branch.row += 1
            reason = self._draw(request, branch, pieces)
        branch.guessed = []
        if branch.position < computed and not self._backend.truncate(branch.sequence, branch.position):
            raise BackendError("the KV of guessed tokens could not be rolled back: start the node with --draft 0")
        return [self._ends.finish(request, branch, reason)] if reason is not None else []

    def _draw(self, request: Request, branch: Branch, pieces: list[tuple[int, str]]) -> FinishReason | None:
        reason, text = branch.draw(self._backend, request.max_tokens)
        self.decoded_tokens += 1
        if text:
            pieces.append((branch.id, text))
        return reason

    # ---- ends -------------------------------------------------------------------------------------------------------

    def _cancel(
        self, request: Request, candidates: Collection[int] | None, reason: FinishReason = FinishReason.CANCELLED
    ) -> list[Event]:
        wanted = {c for c, _ in request.job.candidates} if candidates is None else set(candidates)
        events: list[Event] = [*request.untold.tell(request.job.id, self._clock(), 0)]
        for branch in [b for b in request.branches if b.id in wanted]:
            branch.text.finish()
            if branch.logprobs is not None:
                branch.logprobs.settle(branch.text, over=True)
            events.append(self._ends.finish(request, branch, reason))
        for candidate in [c for c, _ in request.waiting if c in wanted]:
            events.append(Done(request.job.id, Candidate(candidate, self._node, "", 0, 0.0, reason, 0.0)))
        request.waiting = deque((c, s) for c, s in request.waiting if c not in wanted)
        return events + self._settle(request)

    def _settle(self, request: Request) -> list[Event]:
        """After candidates ended: is the job over?"""
        if not request.branches and not request.waiting:
            self._end(request)
            return [Ended(request.job.id)]
        if not request.branches and request.base < 0 and request.job.id in self._running:
            self._ends.restart(request)
        return []

    def _end(self, request: Request) -> None:
        """A job is over: its kept KV waits for `commit`."""
        self._ends.last(request)
        if self._running.pop(request.job.id, None) is None:
            self._queue.remove(request)
            return
        self._ended.add(request, self._clock())
        if request.job.is_polled and not request.job.topic:
            self.commit(request.job.id)  # only for a topic somebody says who won

    def _fail(self, request: Request, error: ConclaveError) -> list[Event]:
        """A job is over and its KV is not to be trusted."""
        self._ends.fail(request)
        del self._running[request.job.id]
        return [Failed(request.job.id, error)]

    def _expire(self, now: float) -> list[Event]:
        events: list[Event] = []
        for request in [*self._queue, *self._running.values()]:
            if request.job.deadline is not None and now >= request.job.deadline:
                events += self._cancel(request, None, FinishReason.DEADLINE)
        self._ended.expire(now)
        return events
