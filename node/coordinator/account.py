"""What a turn spent, and what was seen of it beside its ballots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from node.coordinator.events import Counted, Event, Progressed, Wrote
from node.coordinator.local import written
from node.coordinator.parts import News
from node.engine import scheduler
from node.types import Ballot, Candidate, Timings, Usage


@dataclass(slots=True)
class Account:
    """The account of one turn. `clock` gives seconds, and the turn began at `started`; `tokens` are those of all
    candidates, and `cut` those candidates that a deadline left unfinished. `progress`: whether a client wants that."""

    clock: Callable[[], float]
    started: float
    progress: bool = False
    tokens: int = 0
    overloaded: bool = False
    cut: list[Candidate] = field(default_factory=list)
    prefilled: scheduler.Prefilled | None = None
    first_token: float | None = None

    def see(self, news: News) -> list[Event]:
        """Take news in; what of it is worth telling the client. Ballots are told by who counts them."""
        if self.first_token is None and isinstance(news, scheduler.Text | Wrote | Ballot):
            self.first_token = self.clock()  # where no candidate is ours, a peer's first word or whole answer
        if isinstance(news, Ballot):
            self.tokens += news.candidate.tokens
        elif isinstance(news, Counted | Wrote):  # what our own candidates write comes as the engine's event
            return [news]
        elif isinstance(news, scheduler.Text):
            return list(written(news))
        elif isinstance(news, scheduler.Prefilling):
            return [Progressed(news.computed, news.cached, news.prompt)] if self.progress else []
        elif isinstance(news, scheduler.Prefilled):
            self.prefilled = news
        elif isinstance(news, scheduler.Done):
            self.tokens += news.candidate.tokens
            if news.candidate.text:  # the best there is if nothing finishes in time
                self.cut.append(news.candidate)
        return []

    def usage(self, winner: Candidate) -> Usage:
        """What the answer took."""
        done = self.prefilled
        return Usage(
            prompt=done.prompt if done else 0,
            cached=done.cached if done else 0,
            completion=winner.tokens,
            candidates=self.tokens,
        )

    def timings(self) -> Timings:
        """How long it took, as of now."""
        done = self.prefilled
        return Timings(
            queue_ms=done.queue_ms if done else 0.0,
            prefill_ms=done.prefill_ms if done else 0.0,
            first_token_ms=(self.first_token - self.started) * 1e3 if self.first_token is not None else 0.0,
            total_ms=(self.clock() - self.started) * 1e3,
        )
