"""Counting ballots: clusters, the order in which they rank, merging the tallies of nodes, checking a peer's.

Weights lie on a grid of 2**-40 and are at most 1, so sums of up to 8,192 of them are exact in a float: addition is
associative as well as commutative, and no order of merging can change a winner.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from node.errors import InvalidRequest
from node.types import Ballot, Cluster, Strategy, Tally

_GRID = 2.0**40

Rank = tuple[float, ...]


def quantised(weight: float) -> float:
    """A ballot's weight on the grid, in [2**-40, 1]. NaN and what is below 0 become the least, infinity becomes 1."""
    if math.isnan(weight):
        weight = 0.0
    return max(1.0, round(min(1.0, max(0.0, weight)) * _GRID)) / _GRID


def weight_of(ballot: Ballot, strategy: Strategy) -> float:
    """What a ballot weighs: 1, but under `confidence` its own weight; times its model's standing; on the grid.

    No peer can claim more than 1, and none says anything of its standing.
    """
    own = quantised(ballot.weight) if strategy is Strategy.CONFIDENCE else 1.0
    return own if ballot.standing == 1.0 else quantised(own * quantised(ballot.standing))


def tie_order(ballot: Ballot) -> Rank:
    """Sorts ballots best first: by quality, then mean logprob (from its model's par), then lowest candidate id; NaN
    counts as the worst."""
    quality = ballot.quality if math.isfinite(ballot.quality) else 0.0
    logprob = ballot.candidate.mean_logprob - ballot.par
    return -quality, -logprob if not math.isnan(logprob) else math.inf, ballot.candidate.id


def rank(cluster: Cluster, strategy: Strategy) -> Rank:
    """Sorts clusters best first; no two clusters of one tally have equal ranks, so every node elects the same.

    By weight, then by its medoid's quality, mean logprob and candidate id; under `quality` the medoid's quality goes
    before weight; under `fastest` only latency and id count. Blank answers rank after all others: no number of
    candidates that say nothing outvotes one that answers.
    """
    blank = int(not cluster.key)
    ties = tie_order(cluster.medoid)
    if strategy is Strategy.FASTEST:
        return blank, *_arrival(cluster.medoid)
    if strategy is Strategy.QUALITY:
        return blank, ties[0], -cluster.weight, *ties[1:]
    return blank, -cluster.weight, *ties


def tally(ballots: Iterable[Ballot], strategy: Strategy, planned: int) -> Tally:
    """Count ballots by exact match of their keys, the best cluster first.

    `planned` is the number of candidates started. A medoid is the member that is first in `tie_order` (under
    `fastest`: the first to finish). Raises InvalidRequest when two ballots have the same candidate id.
    """
    groups: dict[str, list[Ballot]] = defaultdict(list)
    seen: set[int] = set()
    for ballot in ballots:
        if ballot.candidate.id in seen:
            raise InvalidRequest(f"candidate {ballot.candidate.id} votes twice")
        seen.add(ballot.candidate.id)
        groups[ballot.key].append(ballot)
    clusters = (cluster_of(key, members, strategy) for key, members in groups.items())
    return Tally(strategy, ranked(clusters, strategy), planned, len(seen))


def cluster_of(key: str, members: Sequence[Ballot], strategy: Strategy, medoid: Ballot | None = None) -> Cluster:
    """One cluster of at least one ballot; its medoid is the first in the strategy's order unless it is given."""
    if medoid is None:
        medoid = min(members, key=lambda ballot: _order(ballot, strategy))
    weight = sum(weight_of(ballot, strategy) for ballot in members)
    return Cluster(key, len(members), weight, medoid, tuple(sorted(ballot.candidate.id for ballot in members)))


def ranked(clusters: Iterable[Cluster], strategy: Strategy) -> tuple[Cluster, ...]:
    """The clusters, best first."""
    return tuple(sorted(clusters, key=lambda cluster: rank(cluster, strategy)))


def merge(a: Tally, b: Tally) -> Tally:
    """The tally of the ballots of both; commutative and associative, and exact: equal to counting them all at once.

    Under `similarity` clusters meet by the key of their medoid only; a coordinator that holds vectors groups the union
    of the ballots instead (`node.core.similarity`). Under `fastest` medoids must carry their latency. Raises
    InvalidRequest when the strategies differ or a candidate is counted in both.
    """
    if a.strategy is not b.strategy:
        raise InvalidRequest(f"a tally by {a.strategy} and one by {b.strategy} do not merge")
    ids_a = {member for cluster in a.clusters for member in cluster.members}
    twice = [member for cluster in b.clusters for member in cluster.members if member in ids_a]
    if twice:
        raise InvalidRequest(f"candidate {min(twice)} is counted in both tallies")
    joined = {cluster.key: cluster for cluster in map(_bounded, a.clusters)}
    for cluster in map(_bounded, b.clusters):
        other = joined.get(cluster.key)
        joined[cluster.key] = cluster if other is None else _join(other, cluster, a.strategy)
    return Tally(a.strategy, ranked(joined.values(), a.strategy), a.planned + b.planned, a.finished + b.finished)


def check(counted: Tally, ballots: Sequence[Ballot]) -> str | None:
    """What does not add up between a peer's tally and the ballots it sent, in one line; None when all does.

    A medoid may have come over the wire without its tokens and latency: its id and the features that break ties are
    compared. Under `similarity` the peer may have grouped different keys; there only the sums are checked.
    """
    by_id = {ballot.candidate.id: ballot for ballot in ballots}
    if len(by_id) != len(ballots):
        return "two ballots have the same candidate id"
    if counted.finished != len(ballots):
        return f"the tally counts {counted.finished} finished candidates, {len(ballots)} ballots came"
    if counted.planned < counted.finished:
        return f"the tally counts {counted.finished} finished candidates of {counted.planned} planned"
    seen: set[int] = set()
    keys: set[str] = set()
    for cluster in counted.clusters:
        if fault := _check_cluster(cluster, by_id, counted.strategy):
            return fault
        if seen.intersection(cluster.members):
            return f"a candidate of cluster {_short(cluster.key)} is counted twice"
        if cluster.key in keys and counted.strategy is not Strategy.SIMILARITY:
            return f"cluster {_short(cluster.key)} comes twice"
        seen.update(cluster.members)
        keys.add(cluster.key)
    if missing := by_id.keys() - seen:
        return f"candidate {min(missing)} sent a ballot and is in no cluster"
    return None


def _check_cluster(cluster: Cluster, by_id: dict[int, Ballot], strategy: Strategy) -> str | None:
    name = _short(cluster.key)
    if list(cluster.members) != sorted(set(cluster.members)) or cluster.count != len(cluster.members):
        return f"cluster {name} counts {cluster.count} and names {len(set(cluster.members))} members"
    if not cluster.members:
        return f"cluster {name} is empty"
    if unknown := [member for member in cluster.members if member not in by_id]:
        return f"candidate {unknown[0]} of cluster {name} sent no ballot"
    members = [by_id[member] for member in cluster.members]
    if strategy is not Strategy.SIMILARITY and (astray := [m for m in members if m.key != cluster.key]):
        return f"candidate {astray[0].candidate.id} of cluster {name} voted for {_short(astray[0].key)}"
    weight = sum(weight_of(ballot, strategy) for ballot in members)
    if cluster.weight != weight:
        return f"cluster {name} weighs {cluster.weight!r}, its ballots {weight!r}"
    medoid = by_id.get(cluster.medoid.candidate.id)
    if medoid is None or medoid.candidate.id not in cluster.members:
        return f"the medoid of cluster {name} is not one of its members"
    if tie_order(medoid) != tie_order(cluster.medoid) or medoid.candidate.text != cluster.medoid.candidate.text:
        return f"the medoid of cluster {name} differs from its ballot"
    return None


def _bounded(cluster: Cluster) -> Cluster:
    """The cluster with its count and weight within what its members can have; a sound cluster is unchanged."""
    count = len(cluster.members)
    weight = 0.0 if math.isnan(cluster.weight) else min(float(count), max(0.0, cluster.weight))
    weight = max(float(count), round(weight * _GRID)) / _GRID
    if count == cluster.count and weight == cluster.weight:
        return cluster
    return replace(cluster, count=count, weight=weight)


def _join(a: Cluster, b: Cluster, strategy: Strategy) -> Cluster:
    return Cluster(
        key=a.key,
        count=a.count + b.count,
        weight=a.weight + b.weight,
        medoid=min(a.medoid, b.medoid, key=lambda ballot: _order(ballot, strategy)),
        members=tuple(sorted(a.members + b.members)),
    )


def _order(ballot: Ballot, strategy: Strategy) -> Rank:
    return _arrival(ballot) if strategy is Strategy.FASTEST else tie_order(ballot)


def _arrival(ballot: Ballot) -> Rank:
    latency = ballot.candidate.latency_ms
    return latency if math.isfinite(latency) else math.inf, ballot.candidate.id


def _short(key: str) -> str:
    return repr(key if len(key) <= 40 else f"{key[:39]}…")
