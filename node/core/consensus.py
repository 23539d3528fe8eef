"""The vote: ballots come in, and it is pending, won or lost; then it has an outcome.

Counting is in `node.core.tally`, grouping by meaning in `node.core.similarity`, early stopping in
`node.core.stopping`; their names that a coordinator needs are here as well. Nothing waits and nothing knows the time:
who calls `Vote` says what finished and what was lost, a deadline included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from node.core.record import Standing, weighed
from node.core.similarity import SIMILARITY_THRESHOLD, group
from node.core.stopping import ADAPTIVE_RISK, adaptive_consistency, chance_of_change, missing, settled, unlikely
from node.core.tally import check, merge, tally
from node.errors import InvalidRequest, NoQuorum
from node.types import Ballot, Loss, Outcome, Strategy, Tally

__all__ = [
    "ADAPTIVE_RISK",
    "DISAGREEMENT",
    "SIMILARITY_THRESHOLD",
    "Vote",
    "VoteState",
    "adaptive_consistency",
    "chance_of_change",
    "check",
    "elect",
    "group",
    "merge",
    "needed",
    "settled",
    "tally",
    "unlikely",
]

# A winner with no more than this share of all weight is no agreement: at least as much of it is elsewhere.
DISAGREEMENT = 0.5


class VoteState(StrEnum):
    """Where a vote stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def needed(planned: int, quorum_fraction: float) -> int:
    """How many of `planned` candidates make a quorum: the fraction rounded up, at least one."""
    return max(1, math.ceil(planned * quorum_fraction))


def elect(
    counted: Tally,
    *,
    quorum: bool | None = None,
    quorum_fraction: float = 0.5,
    stopped_early: bool = False,
    lost: tuple[Loss, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Outcome:
    """The outcome of a tally. `quorum` None means: whether enough candidates finished.

    Its confidence is the winner's share of all weight and its margin the lead over the heaviest other cluster, both
    0..1 and of finished candidates only. Blank answers win only where there are no others, with confidence 0. Under
    `fastest` no agreement is measured: confidence and margin are 0 and a warning says so.
    Raises NoQuorum when nothing finished.
    """
    if not counted.clusters:
        raise NoQuorum(f"none of {counted.planned} candidates finished: try again, or give them more time")
    winner, *others = counted.clusters
    # Summed in order of weight: exact for weights on the grid, and at least the same everywhere for any others.
    total = sum(sorted(cluster.weight for cluster in counted.clusters))
    share = winner.weight / total if total > 0 else 0.0
    lead = winner.weight - max((cluster.weight for cluster in others), default=0.0)
    margin = max(0.0, lead) / total if total > 0 else 0.0
    fastest = counted.strategy is Strategy.FASTEST
    if fastest:
        share = margin = 0.0
        warnings = (*warnings, "the first answer to finish was taken; this is no consensus")
    elif not winner.key:
        share = margin = 0.0
        warnings = (*warnings, "no candidate gave an answer")
    return Outcome(
        strategy=counted.strategy,
        winner=winner.medoid.candidate.id,
        confidence=share,
        margin=margin,
        clusters=counted.clusters,
        dissent=tuple(sorted(member for cluster in others for member in cluster.members)),
        stopped_early=stopped_early,
        planned=counted.planned,
        finished=counted.finished,
        disagreement=share <= DISAGREEMENT and not fastest,
        quorum=counted.finished >= needed(counted.planned, quorum_fraction) if quorum is None else quorum,
        lost=lost,
        warnings=warnings,
    )


class Vote:
    """One vote over candidates that are planned in advance, fed as they finish.

    `planned` are their ids. `adaptive` lets it stop when a change is unlikely, not only when it is impossible; without
    `early` it waits for every candidate that can still finish (`fastest` excepted, whose first ballot is its last).
    `standings` are those of the candidates' models, by candidate id, where several models vote; what a ballot says of
    its own standing is overwritten. `strict` makes it LOST as soon as a quorum is out of reach; otherwise it goes on
    with what there is, the outcome says that there was no quorum, and it is LOST only when nothing at all can finish.
    Once WON or LOST it stays so: a ballot that was under way when candidates were being cancelled comes too late, on
    every path alike.

    Raises InvalidRequest for an unresolved strategy, no candidates, ids below 1 or ids that are planned twice.
    """

    def __init__(
        self,
        strategy: Strategy,
        planned: Iterable[int],
        *,
        adaptive: bool = True,
        early: bool = True,
        quorum_fraction: float = 0.5,
        strict: bool = False,
        standings: Mapping[int, Standing] | None = None,
    ) -> None:
        ids = tuple(planned)
        if strategy is Strategy.AUTO:
            raise InvalidRequest("a vote needs a resolved strategy, not auto")
        if not ids or min(ids) < 1 or len(set(ids)) != len(ids):
            raise InvalidRequest("a vote needs candidate ids from 1 on, each planned once")
        if not 0.0 <= quorum_fraction <= 1.0:
            raise InvalidRequest(f"a quorum is a fraction from 0 to 1, not {quorum_fraction}")
        self.strategy = strategy
        self._planned = frozenset(ids)
        self._adaptive = adaptive
        self._early = early or strategy is Strategy.FASTEST
        self._needed = needed(len(ids), quorum_fraction)
        self._strict = strict
        self._standings = {each: (standings or {}).get(each, Standing()) for each in ids}
        self._ballots: dict[int, Ballot] = {}
        self._counted: Tally | None = None  # all of them
        self._lost: dict[int, tuple[str, str]] = {}
        self._refused: list[str] = []
        self._state = VoteState.PENDING
        self._stopped_early = False

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Ids of candidates that have neither finished nor been lost, ascending: what to cancel once it is decided."""
        return tuple(sorted(self._planned - self._ballots.keys() - self._lost.keys()))

    @property
    def missing(self) -> int:
        """How many more ballots for the leader would decide it, at the least."""
        left = len(self.outstanding)
        if not self._early or self.strategy is Strategy.QUALITY:
            return left
        return missing(self.tally().clusters, left, self.strategy)

    @property
    def ballots(self) -> tuple[Ballot, ...]:
        """The ballots that count, by candidate id."""
        return tuple(self._ballots[each] for each in sorted(self._ballots))

    def state(self) -> VoteState:
        """Pending, won or lost; after every `add` and `lose`."""
        return self._state

    def add(self, ballot: Ballot) -> str | None:
        """Count a ballot. Answers None, or in one line why it does not count; the outcome's warnings repeat it.

        It does not count when its id was never planned, has voted already or was given up for lost, or when the vote
        is over (this last is no warning: stopping always catches some candidates in flight).
        """
        each = ballot.candidate.id
        refusal = None
        if each not in self._planned:
            refusal = f"a ballot of candidate {each} from {ballot.candidate.node!r}, which was never planned"
        elif each in self._ballots:
            refusal = f"a second ballot of candidate {each} from {ballot.candidate.node!r}"
        elif each in self._lost:
            refusal = f"a ballot of candidate {each} from {ballot.candidate.node!r} after it was given up"
        elif self._state is not VoteState.PENDING:
            return f"a ballot of candidate {each} after the vote was over"
        if refusal is not None:
            self._refused.append(f"did not count {refusal}")
            return refusal
        self._ballots[each] = weighed(ballot, self._standings[each], self.strategy)
        self._counted = None
        self._decide()
        return None

    def lose(self, ids: Iterable[int], node: str, reason: str) -> tuple[int, ...]:
        """Give candidates up: their node died, timed out or lied. Answers those that this loses, ascending.

        Ids that have finished, are lost already or were never planned are left alone, and so are all once the vote is
        over: what is cancelled by decision is no loss.
        """
        if self._state is not VoteState.PENDING:
            return ()
        now = tuple(sorted((self._planned & set(ids)) - self._ballots.keys() - self._lost.keys()))
        for each in now:
            self._lost[each] = (node, reason)
        if now:
            self._decide()
        return now

    def tally(self) -> Tally:
        """All ballots so far, counted by exact keys."""
        if self._counted is None:
            self._counted = tally(self._ballots.values(), self.strategy, len(self._planned))
        return self._counted

    def lost(self) -> tuple[Loss, ...]:
        """What was lost so far, by node and reason, in the order of its lowest candidate id."""
        by_cause: dict[tuple[str, str], list[int]] = {}
        for each in sorted(self._lost):
            by_cause.setdefault(self._lost[each], []).append(each)
        return tuple(Loss(node, reason, tuple(ids)) for (node, reason), ids in by_cause.items())

    def outcome(
        self,
        lost: tuple[Loss, ...] = (),
        *,
        vectors: Mapping[int, Sequence[float]] | None = None,
        threshold: float = SIMILARITY_THRESHOLD,
        warnings: tuple[str, ...] = (),
    ) -> Outcome:
        """Elect from the ballots so far, at any time: a vote that is still pending is cut off here.

        `lost` are further losses to report, such as a deadline's. `vectors` (candidate id -> embedding) and
        `threshold` are for `similarity`; without vectors its answers are grouped by exact text and a warning says so.
        There is a quorum when enough candidates finished, or would have, had the vote not been decided before.
        Raises NoQuorum when nothing finished.
        """
        counted = self.tally()
        warnings = (*self._refused, *warnings)
        if self.strategy is Strategy.SIMILARITY:
            if vectors is not None:
                counted = replace(counted, clusters=group(self.ballots, vectors, threshold))
            elif len(counted.clusters) > 1:
                warnings = (*warnings, "there were no embeddings; answers were grouped by exact text")
        present = len(self._planned) - len(self._lost) if self._stopped_early else len(self._ballots)
        return elect(
            counted,
            quorum=present >= self._needed,
            stopped_early=self._stopped_early,
            lost=(*self.lost(), *lost),
            warnings=warnings,
        )

    def _decide(self) -> None:
        open_ = self.outstanding
        outstanding = len(open_)
        reachable = len(self._ballots) + outstanding
        if reachable == 0 or (self._strict and reachable < self._needed):
            self._state = VoteState.LOST
            return
        # Counting has a cost for each ballot of each vote; by quality nothing is settled before the end.
        if outstanding and (not self._early or self.strategy is Strategy.QUALITY):
            return
        clusters = self.tally().clusters
        weights = {each: self._standings[each].weight for each in self._planned}
        done = settled(clusters, sum(weights[each] for each in open_), self.strategy)
        if not done and self._adaptive:
            models = {self._standings[each].model for each in self._ballots}
            heard = [each for each in open_ if self._standings[each].model in models]
            came = sum(weights[each] for each in self._ballots) / max(len(self._ballots), 1)
            relative = sum(weights[each] for each in heard) / len(heard) / came if heard and came else 1.0
            unheard = sum(weights[each] for each in open_ if each not in heard)
            done = unlikely(clusters, len(heard), self.strategy, relative=relative, unheard=unheard)
        if done:
            self._state = VoteState.WON
            self._stopped_early = outstanding > 0
