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
    """A piece of text of a candidate of this node, with the log probabilities of its tokens if they were asked for."""

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


Event = Planned | Wrote | Voted | Counted | GenerateResult
