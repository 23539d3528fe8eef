"""What a turn tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from node.types import Ballot, GenerateResult, Strategy, Tally, TokenLogprob


@dataclass(frozen=True, slots=True)
class Planned:
    """Who computes which candidates, this node first."""

    request_id: str
    strategy: Strategy
    shares: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Wrote:
    """A piece of text of a candidate of this node, or of a peer's where these are watched; with the log probabilities
    of its tokens if they were asked for."""

    candidate: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Voted:
    """A candidate finished, here or on a peer, and its ballot counts."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Counted:
    """The local phase of this node ended."""

    tally: Tally


@dataclass(frozen=True, slots=True)
class Polled:
    """Candidates for another node's vote that finished together. With the last of them: `tally`, the local phase, and
    how many sequences are `free` now."""

    ballots: tuple[Ballot, ...]
    tally: Tally | None = None
    free: int = 0


@dataclass(frozen=True, slots=True)
class Progressed:
    """A part of the prompt is computed on this node: so many of its tokens, of which `cached` were held."""

    computed: int
    cached: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Leads:
    """Who would win if the vote ended now: the ballot that stands for the heaviest cluster, and that one's `share` of
    the weight so far, 0..1, with so many candidates finished."""

    ballot: Ballot
    share: float
    finished: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a stream tells only where it is asked for: how far the prompt is (`Progressed`), who leads (`Leads`), and
    what peers' candidates write (`Wrote` of these too)."""

    progress: bool = False
    leader: bool = False
    peers: bool = False


NO_WISHES = Wishes()


Event = Planned | Wrote | Voted | Counted | Progressed | Leads | GenerateResult
