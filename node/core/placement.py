"""Who takes part in a vote, with how many candidates; and which nodes keep a topic."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from node.types import EarlyStop, Strategy

# Candidates a node when nobody says how many: llama.cpp decodes batches of 4 nearly as fast as of 2 or 3.
CANDIDATES_A_NODE = 4
# Gains of self-consistency flatten after about ten paths, so more nodes than three make answers faster, not better.
MOST_BY_DEFAULT = 12
# Tokens/s beyond which a node counts as no faster: steps of a few milliseconds are measured mostly by what else the
# machine did at the time (the bundled model, on a machine with two other busy programs: 90 to 9,000).
FAST_ENOUGH = 400.0
# Speeds of equal nodes are measured so far apart (above), so within this each takes part. One that is slower is given
# what it finishes as soon as the others do, or nothing: who has a fast machine need not wait for a laptop's answer.
UNSURE = 5.0
# A guest is there for what its model says, so it takes part unless it is slower than the fastest by more than this.
SLOWEST = 32.0


@dataclass(frozen=True, slots=True)
class Participant:
    """A node that could take candidates. `speed` is decode tokens/s (0: not measured), `free` its free sequences.

    `is_guest`: it has another model than the one that is asked, whose candidates have the weight `weight`, 0..1.
    """

    id: str
    speed: float
    free: int
    is_guest: bool = False
    weight: float = 1.0


def default_candidates(participants: int, guests: int = 0) -> int:
    """Candidates of a request that does not say: for each node of the model that is asked, and for as many of other
    models, `guests`, at the most, or the former would have more to compute for having guests."""
    own = max(participants, 1)
    return min(CANDIDATES_A_NODE * (own + min(guests, own)), MOST_BY_DEFAULT)


def share(candidates: int, participants: Sequence[Participant]) -> dict[str, int]:
    """Share candidates in proportion to speed (D'Hondt's method), none with more than its free sequences.

    The first participant is the coordinator: it takes what nobody has room for, and at least one candidate (it streams
    its own, and answers even if every peer dies). Nodes without a share are left out.

    Nodes with other models have at most half of the candidates together, however fast they are: who asked a node asked
    its model, and a quorum must be possible without them. A candidate counts for what it weighs, so a model with a poor
    record is asked for fewer. Raises ValueError if there is no participant or no candidate.
    """
    if candidates < 1 or not participants:
        raise ValueError("a share needs candidates and participants")
    first = participants[0]
    measured = [min(p.speed, FAST_ENOUGH) for p in participants if p.speed > 0]
    usual = sum(measured) / len(measured) if measured else 1.0
    speed = {p.id: min(p.speed, FAST_ENOUGH) if p.speed > 0 else usual for p in participants}
    # Not 0, which a speed that a peer states and a small weight could make.
    worth = {p.id: max(speed[p.id] * p.weight, 1e-9) for p in participants}
    guests = {p.id for p in participants if p.is_guest}
    for_guests = candidates // 2
    out = {p.id: 0 for p in participants}
    out[first.id] = 1
    room = {p.id: max(p.free, 0) for p in participants}
    room[first.id] -= 1

    def is_open(id: str) -> bool:
        return room[id] > 0 and (id not in guests or sum(out[g] for g in guests) < for_guests)

    fastest = max(speed.values())
    for p in sorted(participants[1:], key=lambda p: (p.is_guest, -worth[p.id])):
        slowest = SLOWEST if p.is_guest else UNSURE
        if sum(out.values()) < candidates and is_open(p.id) and speed[p.id] * slowest >= fastest:
            out[p.id] = 1
            room[p.id] -= 1
    for _ in range(candidates - sum(out.values())):
        open_ = [p.id for p in participants if is_open(p.id)]
        # The next candidate goes where it would be finished first: to the node with the lightest load for its speed
        # (and for what its answers are worth).
        best = min(open_, key=lambda i: (out[i] + 1) / worth[i], default=first.id)
        out[best] += 1
        room[best] -= 1
    return {id: n for id, n in out.items() if n}


def wave(mine: int, planned: int, strategy: Strategy, early_stop: EarlyStop) -> int:
    """How many of a node's `mine` candidates begin at first, so that a vote that is soon decided spends nothing on the
    rest; 0: all of them.

    Candidates of one batch end nearly together, so stopping the others when some agree saves hardly a token: they must
    not have begun. Four begin, as many as a batch holds cheaply; for the exact rule a majority of all that are planned,
    since fewer can decide nothing. Only strategies that may stop early are worth the wait.
    """
    if strategy not in (Strategy.MAJORITY, Strategy.CONFIDENCE) or early_stop is EarlyStop.OFF:
        return 0
    first = CANDIDATES_A_NODE if early_stop is EarlyStop.ADAPTIVE else planned // 2 + 1
    return first if first < mine else 0


def replicas(topic: str, nodes: Iterable[str], count: int) -> list[str]:
    """The nodes that keep a topic: rendezvous hashing (Thaler and Ravishankar, 1998), best first.

    Every node comes to the same order by itself, and one that joins or leaves moves only the topics that it keeps.
    """

    def score(node: str) -> bytes:
        return hashlib.blake2b(node.encode(), key=hashlib.blake2b(topic.encode(), digest_size=32).digest()).digest()

    return sorted(set(nodes), key=score, reverse=True)[:count]


def keepers(topic: str, maker: str, models: Mapping[str, str], count: int) -> list[str]:
    """The nodes that keep a topic besides the one that makes its turns, as that one chooses among the nodes that are
    there, `models` by node id: those of its model, or where there is none, any."""
    others = [node for node in models if node != maker]
    same = [node for node in others if models[node] == models.get(maker)]
    return replicas(topic, same or others, count)
