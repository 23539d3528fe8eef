"""Frozen dataclasses that the layers share. No behaviour beyond what follows from the fields alone.

Units: times are milliseconds where the name ends in `_ms`, else seconds; counts are tokens where the name says so.
Candidate ids are positive and unique over the whole mesh within one request; 0 means "none".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a candidate ended; the spelling is OpenAI's where it has one."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Scope(StrEnum):
    """Who takes part in a vote."""

    LOCAL = "local"
    MESH = "mesh"


class Strategy(StrEnum):
    """How a vote is counted (`node.core.consensus`)."""

    AUTO = "auto"
    MAJORITY = "majority"
    CONFIDENCE = "confidence"
    SIMILARITY = "similarity"
    QUALITY = "quality"
    FASTEST = "fastest"


class EarlyStop(StrEnum):
    """When a vote stops its outstanding candidates: a change is unlikely, is impossible, or never."""

    ADAPTIVE = "adaptive"
    EXACT = "exact"
    OFF = "off"


class NodeState(StrEnum):
    """What is held of a node."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for. `arguments` is a JSON object as text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is a JSON schema as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one candidate is sampled. Temperature 0 is greedy; top_k 0 and top_p 1 are off; seed None is random.

    Penalties look back on the last 64 tokens, the prompt's included, as llama.cpp's do: `repeat_penalty` divides or
    multiplies, `presence_penalty` is subtracted once, `frequency_penalty` for each time. `logit_bias` adds to logits of
    (token id, bias). With `logprobs` each token comes with its log probability and the `top_logprobs` most probable
    ones. `ignore_eos` never ends an answer by itself, for benchmarks. `think` tells templates that can be told whether
    the model thinks before it answers; None leaves it to them.
    """

    max_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""
    grammar: str = ""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False
    think: bool | None = None


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Version of a topic. The greatest wins everywhere, by epoch, then turn, then node id."""

    epoch: int = 0
    turn: int = 0
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its natural-log probability under the model's plain distribution: at temperature 1, before any
    penalty or filter; at most 0.

    `token` is for people to read; `bytes` are what it adds to the text, none for control tokens; `id` is the model's.
    `top` are the most probable tokens in its place, the best first, if they were asked for.
    """

    token: str
    logprob: float
    bytes: bytes
    id: int
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished answer. `mean_logprob` is the mean natural-log probability of its tokens, at most 0.

    `logprobs` has an entry for each token of the text if they were asked for: not for the one that ends an answer, nor
    for those of a stop string. `model` is the name of the model that wrote it, `stopped_by` the stop string that ended
    it, if one did.
    """

    id: int
    node: str
    text: str
    tokens: int
    mean_logprob: float
    finish_reason: FinishReason
    latency_ms: float
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    model: str = ""
    stopped_by: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """A candidate as it votes: its answer key, its weight and the features that break ties.

    `key` is empty when no answer could be read. `quality` is 0..1. Made by `node.core.answers.ballot`. Where models
    vote together, `standing` is what its model's record makes of every ballot, 0..1, and `par` the log probability
    from which its own is counted (`node.core.record`).
    """

    candidate: Candidate
    key: str
    weight: float
    quality: float
    standing: float = 1.0
    par: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Ballots that agree. `medoid` is the member that stands for them; `members` are candidate ids, ascending."""

    key: str
    count: int
    weight: float
    medoid: Ballot
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """The whole result of one node's local phase, never just its winner (the popular vote is never inverted)."""

    strategy: Strategy
    clusters: tuple[Cluster, ...]
    planned: int
    finished: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What a vote lost: the candidates of a peer that died, timed out or lied."""

    node: str
    reason: str
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelVote:
    """A model's part of a vote of several models: what each of its candidates weighed, 0..1, and their ids."""

    model: str
    fingerprint: str
    weight: float
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a vote ended. `confidence` is the winner's share of all weight, 0..1; `margin` its lead over the next.

    `models` says who voted where more than one model did.
    """

    strategy: Strategy
    winner: int
    confidence: float
    margin: float
    clusters: tuple[Cluster, ...]
    dissent: tuple[int, ...]
    stopped_early: bool
    planned: int
    finished: int
    disagreement: bool = False
    quorum: bool = True
    lost: tuple[Loss, ...] = ()
    warnings: tuple[str, ...] = ()
    models: tuple[ModelVote, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: `prompt` (of which `cached` were not computed again), the winner's, and all candidates'."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in milliseconds from its arrival at the coordinator."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A prompt to be answered. `candidates` 0 is the node's default; `append` continues the topic's conversation.

    `early_stop` None is the node's default. With `is_raw`, the last message is the prompt as it stands, without the
    model's template, and only the node that is asked computes it.
    `parent` is the version that it continues, at the least; the zero version is any. With `begin`, what continues a
    topic that is not there begins it, and system messages at the front count only then.
    """

    messages: tuple[Message, ...]
    topic: str = ""
    append: bool = False
    candidates: int = 0
    strategy: Strategy = Strategy.AUTO
    scope: Scope = Scope.MESH
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[Tool, ...] = ()
    model: str = ""
    request_id: str = ""
    early_stop: EarlyStop | None = None
    is_raw: bool = False
    parent: Version = Version()
    begin: bool = False

    @property
    def said(self) -> tuple[Message, ...]:
        """What it adds to a topic that is there already."""
        front = 0
        while self.begin and self.messages[front].role == "system":
            front += 1
        return self.messages[front:]


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The answer to a `GenerateRequest`: the winner's text and everything that was decided on the way."""

    text: str
    finish_reason: FinishReason
    topic: str
    version: Version
    outcome: Outcome
    candidates: tuple[Candidate, ...]
    answers: dict[int, str]
    usage: Usage
    timings: Timings
    request_id: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as it describes itself to its peers. `load` is the share of its sequences in use, 0..1.

    `address` is HOST:PORT of its mesh listener. `round_trip_ms` is what the describing node measured, 0 for itself.
    `lends_bytes` of its memory are for other nodes' models, now for that of the node `lent_to`; its own model is spread
    over the nodes `borrows_from` too.
    """

    id: str
    address: str
    name: str = ""
    model: str = ""
    fingerprint: str = ""
    backend: str = ""
    state: NodeState = NodeState.ALIVE
    load: float = 0.0
    sequences: int = 0
    free_sequences: int = 0
    decode_tokens_per_s: float = 0.0
    round_trip_ms: float = 0.0
    incarnation: int = 0
    version: str = ""
    local_address: str = ""
    lends_bytes: int = 0
    lent_to: str = ""
    borrows_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as `status` lists it: its version, its length in tokens, and the ids of the nodes that hold it.

    A `forgotten` one is a tombstone, which keeps a node that comes back from bringing the topic back. `made_ms` is when
    its last turn was made, Unix time in milliseconds, 0 if that is not known; `branches` what other nodes said of it
    apart.
    """

    topic: str
    version: Version
    tokens: int
    bytes: int = 0
    replicas: tuple[str, ...] = ()
    forgotten: bool = False
    made_ms: int = 0
    branches: int = 0
