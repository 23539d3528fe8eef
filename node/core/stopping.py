"""When a vote may end before all its candidates have: when nothing outstanding can change it, or hardly.

A ballot weighs at most 1 or its model's standing, so outstanding candidates add at most the sum of these to any
cluster, known or new. Both rules protect the winning cluster, the answer; which of its texts stands for it may still
improve with a later ballot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from node.types import Cluster, Strategy

# The chance of a change under which an adaptive vote stops. Adaptive-consistency (arXiv 2305.11860) uses 0.95 as the
# least probability that the leader stays the leader.
ADAPTIVE_RISK = 0.05

_GRID = 1 << 40  # the grid of weights (`node.core.tally`), for exact integer arithmetic


def settled(clusters: Sequence[Cluster], outstanding: float, strategy: Strategy) -> bool:
    """Whether no completion can change which cluster wins. `clusters` are ranked, the best first; `outstanding` is the
    most that the candidates to come can weigh together, which is their number where one model votes.

    Exact for `majority` and `confidence`: true if and only if the leader's lead is greater than what is outstanding,
    so that not even a tie is within reach. (Equality is a tie, and a tie falls to features that are not known yet.)
    Under `similarity` any clusters may still turn out to mean the same, so the leader must outweigh all others and
    everything outstanding together. `quality` is never settled before the end, because one better text wins; `fastest`
    is settled by its first answer.
    """
    if outstanding <= 0:
        return True
    leader, runner, others = _weights(clusters)
    if strategy is Strategy.FASTEST:
        return leader > 0
    if strategy is Strategy.QUALITY:
        return False
    rivals = others if strategy is Strategy.SIMILARITY else runner
    return leader - rivals > outstanding


def missing(clusters: Sequence[Cluster], outstanding: int, strategy: Strategy) -> int:
    """The fewest of the `outstanding` ballots, all of weight 1 and all for the leader, that settle a vote; all of them
    where none could before the end."""
    if strategy is Strategy.QUALITY:
        return outstanding
    leader, runner, others = _weights(clusters)
    if strategy is Strategy.FASTEST:
        return 0 if leader > 0 else min(1, outstanding)
    lead = leader - (others if strategy is Strategy.SIMILARITY else runner)
    # With k more it leads by lead + k, and outstanding - k are left: lead + k > outstanding - k.
    return min(max(0, math.floor((outstanding - lead) / 2) + 1), outstanding)


def unlikely(
    clusters: Sequence[Cluster],
    outstanding: int,
    strategy: Strategy,
    risk: float = ADAPTIVE_RISK,
    relative: float = 1.0,
    unheard: float = 0.0,
) -> bool:
    """Whether a change of winner by outstanding candidates has a chance below `risk`; majority and confidence only.

    Where several models vote, `relative` is what a candidate to come may weigh at most, on average, over the same of
    those that came; and of a model without a ballot so far nothing can be said from those of others, so all that its
    candidates can weigh, `unheard`, is taken for the runner-up. They are not in `outstanding`. (Or a model that is
    quick would decide before the others have said anything.)
    """
    if strategy not in (Strategy.MAJORITY, Strategy.CONFIDENCE):
        return False
    leader, runner, _ = _weights(clusters)
    runner += unheard
    if leader <= 0 or runner >= leader:
        return False
    # In units of the mean ballot: what is still to come is expected to weigh as much as what came, and a factor common
    # to all weights of a question (CISC's normalisation) changes nothing.
    unit = relative * sum(cluster.weight for cluster in clusters) / sum(cluster.count for cluster in clusters)
    return chance_of_change(leader / unit, runner / unit, outstanding) < risk


def chance_of_change(leader: float, runner: float, outstanding: int) -> float:
    """The chance, 0..1, that the runner-up reaches the leader with `outstanding` votes to come.

    Adaptive-consistency (arXiv 2305.11860) puts a Beta posterior with a uniform prior on the share of votes that the
    leader gets of those that go to the first two, Beta(leader + 1, runner + 1), and asks whether it is above a half:
    whether the leader would win if sampling went on for ever. Here the number of votes to come is known, so the
    question is about them: with that posterior X, the votes that go to the runner-up, is Beta-binomial, and the answer
    is P(runner + X >= leader + outstanding - X). A tie counts as a change. The weights are in votes, that is, a vote to
    come weighs 1; they are rounded to a multiple of 2**-40. Computed in integers, exact but for the division at the
    end.
    """
    if outstanding <= 0:
        return 0.0
    unit = 1 if leader == int(leader) and runner == int(runner) else _GRID
    ahead, behind = round(leader * unit), round(runner * unit)
    # The least X for which the runner-up reaches the leader: X >= (lead + outstanding) / 2.
    least = max(0, -(-(ahead - behind + outstanding * unit) // (2 * unit)))
    if least > outstanding:
        return 0.0
    # P(X = k) = C(m, k) * rising(runner + 1, k) * rising(leader + 1, m - k) / rising(leader + runner + 2, m)
    for_runner = _rising(behind + unit, outstanding, unit)
    for_leader = _rising(ahead + unit, outstanding, unit)
    whole = _rising(ahead + behind + 2 * unit, outstanding, unit)[outstanding]
    changed = sum(
        math.comb(outstanding, k) * for_runner[k] * for_leader[outstanding - k] for k in range(least, outstanding + 1)
    )
    return changed / whole


def adaptive_consistency(first: int, second: int) -> float:
    """Adaptive-consistency's own measure: the probability that the first of two answers is the more likely one.

    P(p > 1/2) for p ~ Beta(first + 1, second + 1), 0..1; sampling stops when it exceeds 0.95 (arXiv 2305.11860). It
    knows no end of sampling, so it is what `chance_of_change` tends to as the votes to come grow without bound
    (then 1 minus this). Exact: for whole counts it is a binomial tail.
    """
    n = first + second + 1
    return sum(math.comb(n, k) for k in range(first + 1)) / (1 << n)


def _rising(start: int, steps: int, unit: int) -> list[int]:
    """Rising factorials start * (start + unit) * …, of 0 up to `steps` factors."""
    products = [1]
    for i in range(steps):
        products.append(products[-1] * (start + i * unit))
    return products


def _weights(clusters: Sequence[Cluster]) -> tuple[float, float, float]:
    """Weight of the leader, of its strongest rival, and of all rivals; blank answers lead nothing and rival no one."""
    said = [cluster.weight for cluster in clusters if cluster.key]
    if not said:
        return 0.0, 0.0, 0.0
    rivals = said[1:]
    return said[0], max(rivals, default=0.0), sum(rivals)
