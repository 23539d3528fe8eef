"""A turn before anything runs: the whole conversation, who takes part, and how it will be decided."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from node.coordinator import lineup
from node.coordinator.lineup import Lineup
from node.coordinator.place import Place
from node.core import answers, placement
from node.core.consensus import Vote
from node.errors import InvalidRequest, NotFound
from node.store import Topic
from node.types import EarlyStop, GenerateRequest, Version

# Left of a client's deadline for electing and for the way back, so that the answer arrives and not the deadline.
DEADLINE_MARGIN_S = 0.25
MAX_LOGPROBS = 500_000  # of an answer; some 30 bytes each, and a message is 64 MiB at most


@dataclass(frozen=True, slots=True)
class Plan:
    """What is settled of a turn when it begins.

    `request` has its whole conversation, its strategy and its seed. `job` is the id of our own part in the engine.
    `deadline`, in seconds of the place's clock, leaves time for the way back. `parent` is what is held of the topic.
    """

    place: Place
    request: GenerateRequest
    lineup: Lineup
    shares: Mapping[str, tuple[int, ...]]
    job: str
    deadline: float | None
    parent: Version
    early_stop: EarlyStop

    @property
    def count(self) -> int:
        """Candidates over all nodes."""
        return sum(map(len, self.shares.values()))

    @property
    def takes_part(self) -> bool:
        """Whether this node has candidates itself."""
        return self.place.id in self.shares

    @property
    def is_late(self) -> bool:
        """Whether the deadline is over."""
        return self.deadline is not None and self.place.clock() >= self.deadline

    def left(self, *, of_margin: float = 0.0) -> float | None:
        """Seconds until the deadline, None without one; `of_margin` is the share of its margin that may be used up."""
        if self.deadline is None:
            return None
        return self.deadline + of_margin * DEADLINE_MARGIN_S - self.place.clock()

    def wave(self, node: str) -> int:
        """How many of a node's candidates begin at first; 0: all."""
        return placement.wave(len(self.shares[node]), self.count, self.request.strategy, self.early_stop)

    def vote(self) -> Vote:
        """The vote that the turn holds."""
        return Vote(
            self.request.strategy,
            range(1, self.count + 1),
            adaptive=self.early_stop is EarlyStop.ADAPTIVE,
            early=self.early_stop is not EarlyStop.OFF,
            strict=self.place.strict,
            standings=self.lineup.standings,
        )


def plan(place: Place, asked: GenerateRequest, deadline: float | None) -> Plan:
    """Settle a request. Raises NotFound for a topic or a model that is not here, InvalidRequest."""
    parent = place.store.version(asked.topic) if asked.topic else Version()
    request = _settled(place, asked)
    members = lineup.lineup(place, request)
    made = Plan(
        place,
        request,
        members,
        members.shares,
        # An id of this attempt alone: an earlier one of the same request may still be ending in the engine.
        f"{place.id}/{request.request_id}/{secrets.token_hex(4)}",
        None if deadline is None else deadline - DEADLINE_MARGIN_S,
        parent,
        request.early_stop or place.early_stop,
    )
    _check_logprobs(request, made.count)
    return made


def _settled(place: Place, request: GenerateRequest) -> GenerateRequest:
    """The request with its whole conversation, its strategy and its seed."""
    messages = request.messages
    topic = _held(place, request) if request.append else None
    if topic is not None:
        if topic.version < request.parent:
            raise NotFound(
                f"topic {request.topic!r} is known here up to turn {topic.version.turn}, not to turn "
                f"{request.parent.turn}: send the whole conversation"
            )
        messages = topic.messages + request.said
    params = request.params
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    strategy = answers.resolve(request.strategy, messages, request.tools, params.json_schema)
    return replace(request, messages=messages, params=params, strategy=strategy)


def _held(place: Place, request: GenerateRequest) -> Topic | None:
    """What is held of the topic that a request goes on with; None if it begins it. Raises NotFound."""
    try:
        return place.store.get(request.topic)
    except NotFound as e:
        if request.begin and request.parent == Version():
            return None
        if ":" in e.message:
            raise
        raise NotFound(f"{e.message}, so nothing can be appended to it: send the whole conversation") from None


def _check_logprobs(request: GenerateRequest, candidates: int) -> None:
    """Raises InvalidRequest where log probabilities could make an answer that is too large to send."""
    params = request.params
    entries = candidates * params.max_tokens * (1 + params.top_logprobs)
    if params.logprobs and entries > MAX_LOGPROBS:
        raise InvalidRequest(
            f"{candidates} candidates of {params.max_tokens} tokens with {params.top_logprobs} top_logprobs are "
            f"{entries} log probabilities: at most {MAX_LOGPROBS}; ask for fewer candidates, max_tokens or top_logprobs"
        )
