"""Grouping free-text answers by meaning, and the answer that stands for each group.

The vectors are embeddings of the answers. Closeness of vectors is no proof of agreement: embeddings put a statement
and its negation close together (lexical measures even rank contradictions above paraphrases). So answers whose
numbers differ, of which one is negated and the other not, or that call different tools never share a group.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from node.core import numbers, thoughts
from node.core.tally import cluster_of, ranked, tie_order
from node.types import Ballot, Cluster, Strategy

# Least mean cosine for two groups to be one. For sentence embedders such as MiniLM; mean-pooled hidden states of a
# language model lie closer together (all cosines are high) and want a higher one.
SIMILARITY_THRESHOLD = 0.8

# Text that is searched for numbers and negations, in characters.
_READ = 65536
# Decimal places to which cosines count: below them lies the noise of the order of summation.
_PLACES = 9

_NEGATION = re.compile(
    r"(?<![\w-])(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|cannot|without|false|incorrect|impossible|unable"
    r"|\w+n't|nicht|nein|kein\w{0,2}|nie|pas|jamais|nunca|jamás|nessuno|mai)(?![\w-])"
    # These deny nothing.
    r"(?!\s+(?:only|just|doubt|problem|matter|wonder)\b)"
    # "cant" and "wont" without their apostrophe, as people and models write them
    r"|(?<![\w-])(?:isnt|arent|dont|doesnt|didnt|cant|wont|shouldnt|wouldnt)(?![\w-])",
    re.IGNORECASE,
)

Matrix = npt.NDArray[np.float64]
Signature = tuple[str, bool, tuple[tuple[str, int], ...]]


def negated(text: str) -> bool:
    """Whether a text denies something: holds a negation, other than "not only" and the like."""
    return _NEGATION.search(text[:_READ].replace("’", "'")) is not None


def signature(ballot: Ballot) -> Signature:
    """What must be equal for two answers to agree whatever their vectors say: calls, negation, multiset of numbers."""
    if ballot.candidate.tool_calls:
        return ballot.key, False, ()
    text = thoughts.answer(ballot.candidate.text)[:_READ]
    return "", negated(text), tuple(sorted(Counter(numbers.scan(text)).items()))


def group(
    ballots: Sequence[Ballot], vectors: Mapping[int, Sequence[float]], threshold: float = SIMILARITY_THRESHOLD
) -> tuple[Cluster, ...]:
    """Group ballots by meaning: agglomerative clustering with average linkage, the best cluster first.

    `vectors` maps candidate ids to embeddings of one length, of any scale. A ballot without a usable vector (missing,
    not finite, zero, of another length than most) takes that of a ballot with its key, or joins no other. Groups
    start from equal keys, and the two groups with the highest mean cosine join while that is at least `threshold` and
    their signatures are equal. A group's medoid is its member with the highest mean cosine to the
    others: minimum Bayes risk decoding (arXiv 2310.01387 surveys it); ties by `tie_order`. The order of `ballots` does
    not matter. O(n**3) in numpy.
    """
    ballots = sorted(ballots, key=lambda ballot: ballot.candidate.id)
    if len(ballots) == 1:  # one candidate agrees with itself: nothing to compute before its answer
        return (cluster_of(ballots[0].key, ballots, Strategy.SIMILARITY, ballots[0]),)
    units = _units([vectors.get(ballot.candidate.id, ()) for ballot in ballots])
    starts: dict[str, list[int]] = {}
    for place, ballot in enumerate(ballots):
        starts.setdefault(ballot.key, []).append(place)
    groups = list(starts.values())
    # Equal keys are equal normalised texts, so the first member's signature is the group's.
    signatures = [signature(ballots[members[0]]) for members in groups]
    joins = []
    for members in groups:
        usable = [place for place in members if units[place].any()]
        for place in members:
            if usable and place not in usable:
                units[place] = units[usable[0]]
        joins.append(bool(usable) and bool(ballots[members[0]].key))
    cosines: Matrix = (units @ units.T).clip(-1.0, 1.0).round(_PLACES)
    groups = _agglomerate(groups, cosines, _allowed(signatures, joins), threshold)
    clusters = []
    for members in map(sorted, groups):
        medoid = _medoid(members, ballots, cosines)
        clusters.append(cluster_of(medoid.key, [ballots[i] for i in members], Strategy.SIMILARITY, medoid))
    return ranked(clusters, Strategy.SIMILARITY)


def _units(vectors: Sequence[Sequence[float]]) -> Matrix:
    """The vectors at length 1, one a row; zeros in the rows of those that cannot be compared."""
    lengths = Counter(len(vector) for vector in vectors if len(vector))
    # The most frequent length; of equally frequent ones the greatest, so that the order of ballots does not matter.
    length = max(lengths, key=lambda n: (lengths[n], n)) if lengths else 1
    matrix = np.zeros((len(vectors), length))
    for row, vector in enumerate(vectors):
        if len(vector) == length:
            matrix[row] = vector
    matrix[~np.isfinite(matrix).all(axis=1)] = 0.0
    # Scaled by the greatest component first: the squares of huge or tiny components would overflow or vanish.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    matrix /= np.where(largest > 0, largest, 1.0)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix /= np.where(norms > 0, norms, 1.0)
    return matrix


def _allowed(signatures: Sequence[Signature], joins: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Which pairs of groups may join: equal signatures, both of those that join at all, not the same."""
    numbered: dict[Signature, int] = {}
    kinds = np.array([numbered.setdefault(each, len(numbered)) for each in signatures], dtype=np.int64)
    able = np.array(joins, dtype=np.bool_)
    allowed: npt.NDArray[np.bool_] = (kinds[:, None] == kinds[None, :]) & able[:, None] & able[None, :]
    np.fill_diagonal(allowed, False)
    return allowed


def _agglomerate(
    groups: list[list[int]], cosines: Matrix, allowed: npt.NDArray[np.bool_], threshold: float
) -> list[list[int]]:
    # Mean similarity of each pair of groups. When two join, the mean to a third is the mean of theirs by size
    # (Lance and Williams, 1967), so no pair of members is looked at again.
    sizes = np.array([len(members) for members in groups], dtype=np.float64)
    member = np.zeros((len(groups), len(cosines)))
    for row, places in enumerate(groups):
        member[row, places] = 1.0
    mean = member @ cosines @ member.T / np.outer(sizes, sizes)
    mean = np.where(allowed, mean, -np.inf)
    joined: list[list[int] | None] = list(groups)
    while len(groups) > 1:
        # Equal means: the pair with the lowest candidate ids, by the order of rows.
        a, b = (int(i) for i in np.unravel_index(np.argmax(np.round(mean, _PLACES)), mean.shape))
        left, right = joined[a], joined[b]
        if left is None or right is None or np.isneginf(mean[a, b]) or not mean[a, b] >= threshold - 10.0**-_PLACES:
            break
        with np.errstate(invalid="ignore"):
            row = (sizes[a] * mean[a] + sizes[b] * mean[b]) / (sizes[a] + sizes[b])
        row[[a, b]] = -np.inf
        mean[a, :] = mean[:, a] = row
        mean[b, :] = mean[:, b] = -np.inf
        joined[a], joined[b] = left + right, None
        sizes[a] += sizes[b]
    return [members for members in joined if members is not None]


def _medoid(members: list[int], ballots: Sequence[Ballot], cosines: Matrix) -> Ballot:
    gain = cosines[np.ix_(members, members)].sum(axis=1)
    order = [(-round(float(gain[i]), _PLACES - 2), *tie_order(ballots[place])) for i, place in enumerate(members)]
    return ballots[members[order.index(min(order))]]
