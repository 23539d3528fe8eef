"""The record of each model: how often its candidates agreed with what was decided, and what they weigh for it.

Nobody knows which answers are right, so a model is measured by agreement with the outcomes of votes in which other
models voted too (as Dawid and Skene, 1979, measure observers without a key; here the outcome is the consensus, and is
not estimated again). A node measures for itself and believes no weight that a peer states.

    learn      the records after a vote
    standings  what candidates of each model of a vote weigh
    weighed    a ballot with the standing of its model

**Shrunk to the mean.** A vote counts once for each model, with the share of its ballots that agreed: ballots of one
model on one question are no independent trials. A model's accuracy is the mean of a Beta posterior whose prior has the
mean of all models of the vote and the weight of `PRIOR_VOTES` votes (Efron and Morris, 1975, on batting averages; the
prior's weight is fixed and not estimated, since two or three models say nothing about their spread). So models that
are not known yet weigh the same, and luck in a few votes moves nothing far.

**Weights.** The best weighting of independent voters is by log odds (Nitzan and Paroush, 1982; with more than two
answers to choose from: log of p (k - 1) / (1 - p), Ben-Yashar and Paroush, 2001). The best model of a vote weighs 1
and the others less, none less than `LEAST`, or it could never come back. A vote of one model has weights of 1.

**Log probabilities.** Their means differ between models for reasons of tokens and training, not of truth. Where models
vote together, each log probability counts from its model's par: what is usual for the model, by its record, and one
`CONFIDENCE_TEMPERATURE`, so that better answers than usual can be told apart too.

Everything is fixed when a vote begins, and carried by the ballots: tallies of weighed ballots merge as all do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from node.core.answers import CONFIDENCE_TEMPERATURE, confidence_weight
from node.core.tally import quantised
from node.types import Ballot, Outcome, Strategy

PRIOR_VOTES = 10.0
# What is to be expected of a model when nothing at all is known: of no consequence for weights, which compare models.
FIRST_GUESS = 0.5
# Answers that a wrong candidate spreads over, for the odds: lettered questions have four, sums have any number.
ALTERNATIVES = 4
LEAST = 1 / 16
# A record is worth this many votes at most; older ones fade, since a model may be asked other things now.
MOST_VOTES = 400.0
# Candidates after which a model's own log probabilities count for as much as what is usual for all.
PRIOR_CANDIDATES = 4.0
MOST_CANDIDATES = 4000.0
_LOWEST_LOGPROB = -20.0
# `fastest` and `quality` elect one text for other reasons than agreement.
_LEARNS = (Strategy.MAJORITY, Strategy.CONFIDENCE, Strategy.SIMILARITY)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one model. `agreed` is the sum over `votes` of the share of its ballots that agreed with the
    outcome; `logprob` the mean natural-log probability of a token over `candidates` answers."""

    votes: float = 0.0
    agreed: float = 0.0
    candidates: float = 0.0
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts for the candidates of a model in one vote: their weight, at most 1, the log probability from which
    theirs are counted, and what names the model."""

    weight: float = 1.0
    par: float = 0.0
    model: str = ""


def accuracy(record: Record, prior: float = FIRST_GUESS) -> float:
    """The share of a model's ballots that is expected to agree, 0..1: its record, shrunk to `prior`."""
    return (record.agreed + PRIOR_VOTES * prior) / (record.votes + PRIOR_VOTES)


def pooled(records: Iterable[Record]) -> float:
    """The mean that models are shrunk to: that of all their votes, itself shrunk to a first guess."""
    known = list(records)
    return accuracy(Record(sum(r.votes for r in known), sum(r.agreed for r in known)))


def standings(records: Mapping[str, Record]) -> dict[str, Standing]:
    """The standing of each model of a vote, by whatever names it; a model alone has the plain one."""
    if len(records) < 2:
        return dict.fromkeys(records, Standing())
    mean = pooled(records.values())
    worth = {name: _log_odds(accuracy(record, mean)) for name, record in records.items()}
    best = max(worth.values())
    total = sum(record.candidates for record in records.values())
    usual = sum(record.logprob * record.candidates for record in records.values()) / total if total else 0.0
    out = {}
    for name, record in records.items():
        # Where not even the best is above chance, the odds say nothing.
        weight = max(worth[name] / best, LEAST) if best > 0 else 1.0
        own = record.candidates / (record.candidates + PRIOR_CANDIDATES)
        par = own * record.logprob + (1 - own) * usual + CONFIDENCE_TEMPERATURE
        out[name] = Standing(quantised(weight), par, name)
    return out


def weighed(ballot: Ballot, standing: Standing, strategy: Strategy) -> Ballot:
    """The ballot with the standing of its model; that of a model alone is unchanged."""
    if (ballot.standing, ballot.par) == (standing.weight, standing.par):
        return ballot
    made = replace(ballot, standing=standing.weight, par=standing.par)
    if strategy is Strategy.CONFIDENCE:
        made = replace(made, weight=confidence_weight(ballot.candidate.mean_logprob - standing.par))
    return made


def learn(
    records: Mapping[str, Record], ballots: Sequence[Ballot], outcome: Outcome, models: Mapping[int, str]
) -> dict[str, Record]:
    """New records of the models that voted; none if the vote teaches nothing. `models` is by candidate id.

    It teaches something where ballots of at least two models came, most of the weight went to one answer that at least
    two candidates gave, and there was a quorum.
    """
    by_model: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.candidate.id in models:
            by_model.setdefault(models[ballot.candidate.id], []).append(ballot)
    if len(by_model) < 2 or outcome.strategy not in _LEARNS or outcome.disagreement or not outcome.quorum:
        return {}
    winners = set(outcome.clusters[0].members)
    if len(winners) < 2:
        return {}
    return {name: _after(records.get(name, Record()), cast, winners) for name, cast in by_model.items()}


def _after(record: Record, cast: Sequence[Ballot], winners: set[int]) -> Record:
    """A record with one vote more."""
    fades = min(1.0, (MOST_VOTES - 1) / record.votes) if record.votes else 1.0
    agreed = sum(ballot.candidate.id in winners for ballot in cast) / len(cast)
    said = [b.candidate.mean_logprob for b in cast if not math.isnan(b.candidate.mean_logprob)]
    before = min(record.candidates, MOST_CANDIDATES - len(said))
    total = sum(min(0.0, max(_LOWEST_LOGPROB, logprob)) for logprob in said)
    count = before + len(said)
    mean = (record.logprob * before + total) / count if count else 0.0
    return Record(record.votes * fades + 1, record.agreed * fades + agreed, count, mean)


def _log_odds(p: float) -> float:
    """Log odds against one of the alternatives; 0 at chance."""
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p * (ALTERNATIVES - 1) / (1 - p))
