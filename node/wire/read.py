"""What comes from the wire, validated: requests of clients and peers, and what peers say of themselves.

Each `*_request` function raises `InvalidRequest` with one line that says what is wrong and what would be right. What is
not said on the wire takes the defaults of `Defaults`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from node.errors import InvalidRequest
from node.types import (
    Ballot,
    Candidate,
    Cluster,
    FinishReason,
    GenerateRequest,
    Message,
    NodeInfo,
    NodeState,
    SamplingParams,
    Scope,
    Strategy,
    Tally,
    TokenLogprob,
    Tool,
    ToolCall,
    Version,
)
from node.v1 import generate_pb2, types_pb2, vote_pb2

MAX_CANDIDATES = 64  # Gains flatten after about 10 (DESIGN §5); 256 is llama.cpp's limit on sequences.
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_CALLS = 128  # tool calls of a message
MAX_TOOLS = 128
MAX_TEXTS = 256
MAX_NAME_BYTES = 256
MAX_RULES_BYTES = 1 << 16  # of a JSON schema or a grammar, which native code takes apart
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MAX_LENT_BYTES = 1 << 50
MAX_LENDERS = 64
MAX_TURN = 1 << 53  # of a version: beyond any count of turns, and far from where a uint64 ends
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request takes for what it leaves out; from the node's configuration."""

    candidates: int = 0  # 0: by the number of nodes that take part
    strategy: Strategy = Strategy.AUTO
    params: SamplingParams = field(default_factory=SamplingParams)


# ---- requests: validated -------------------------------------------------------------------------------------------


def generate_request(pb: generate_pb2.GenerateRequest, defaults: Defaults) -> GenerateRequest:
    """A request as asked, checked, with defaults filled in. Raises InvalidRequest."""
    if pb.candidates < 0 or pb.candidates > MAX_CANDIDATES:
        raise InvalidRequest(f"candidates is {pb.candidates}: it must be 1 to {MAX_CANDIDATES}, or 0 for the default")
    if pb.append and not pb.topic:
        raise InvalidRequest("append needs a topic: name the conversation that the messages continue")
    if pb.scope not in generate_pb2.Scope.values():
        raise InvalidRequest(f"scope is {pb.scope}: it must be SCOPE_LOCAL or SCOPE_MESH, or not set")
    return GenerateRequest(
        messages=messages(pb.messages),
        topic=name("topic", pb.topic),
        append=pb.append,
        candidates=pb.candidates or defaults.candidates,
        strategy=strategy(pb.strategy) if pb.strategy else defaults.strategy,
        scope=Scope.LOCAL if pb.scope == generate_pb2.SCOPE_LOCAL else Scope.MESH,
        params=sampling_params(pb.params, defaults.params),
        tools=tools(pb.tools),
        model=name("model", pb.model),
        request_id=name("request_id", pb.request_id),
        parent=version(pb.parent),
        begin=pb.append and pb.begin,
    )


def messages(pbs: Sequence[types_pb2.Message]) -> tuple[Message, ...]:
    """A conversation, checked: known roles, something to answer at its end. Raises InvalidRequest."""
    conversation = _conversation(pbs)
    if conversation[-1].role not in ("user", "tool"):
        raise InvalidRequest(f"the last message is from {conversation[-1].role!r}: it must be from user or tool")
    return conversation


def answered(pbs: Sequence[types_pb2.Message]) -> tuple[Message, ...]:
    """A conversation whose last message is the assistant's, checked. Raises InvalidRequest."""
    conversation = _conversation(pbs)
    if conversation[-1].role != "assistant":
        raise InvalidRequest(f"the last message is from {conversation[-1].role!r}: it must be the assistant's answer")
    return conversation


def _conversation(pbs: Sequence[types_pb2.Message]) -> tuple[Message, ...]:
    if not pbs:
        raise InvalidRequest("messages is empty: send at least one user message")
    if len(pbs) > MAX_MESSAGES:
        raise InvalidRequest(f"{len(pbs)} messages: at most {MAX_MESSAGES}")
    for i, pb in enumerate(pbs):
        if pb.role not in ROLES:
            raise InvalidRequest(f"messages[{i}].role is {_short(pb.role)}: it must be one of {', '.join(ROLES)}")
        if pb.role == "user" and not pb.content.strip():
            raise InvalidRequest(f"messages[{i}] is an empty prompt: a user message needs some text")
        if len(pb.tool_calls) > MAX_CALLS:
            raise InvalidRequest(f"messages[{i}] has {len(pb.tool_calls)} tool calls: at most {MAX_CALLS}")
    return tuple(message(pb) for pb in pbs)


def message(pb: types_pb2.Message) -> Message:
    """One message, as it stands."""
    return Message(pb.role, pb.content, tuple(tool_call(c) for c in pb.tool_calls), pb.tool_call_id)


def tool_call(pb: types_pb2.ToolCall) -> ToolCall:
    """A tool call, as it stands."""
    return ToolCall(name=pb.name, arguments=pb.arguments, id=pb.id)


def tools(pbs: Sequence[types_pb2.Tool]) -> tuple[Tool, ...]:
    """Tools, checked: each has a name of its own and a JSON object for a schema. Raises InvalidRequest."""
    if len(pbs) > MAX_TOOLS:
        raise InvalidRequest(f"{len(pbs)} tools: at most {MAX_TOOLS}")
    out: dict[str, Tool] = {}
    for i, pb in enumerate(pbs):
        if not pb.name:
            raise InvalidRequest(f"tools[{i}] has no name")
        if name(f"tools[{i}].name", pb.name) in out:
            raise InvalidRequest(f"tools[{i}].name is {pb.name!r}, which another tool has")
        _object(f"tools[{i}].parameters", pb.parameters or "{}")
        out[pb.name] = Tool(pb.name, pb.description, pb.parameters or "{}")
    return tuple(out.values())


def _object(what: str, text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InvalidRequest(f"{what} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} must be a JSON object")


def sampling_params(pb: types_pb2.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Sampling parameters, checked. Raises InvalidRequest."""

    def bounded(field: str, low: float, high: float, default: float) -> float:
        if not pb.HasField(field):  # type: ignore[arg-type]
            return default
        # A float32 stands for the shortest decimal that it is nearest to: 0.8 and not 0.800000011920929.
        value = float(f"{getattr(pb, field):.7g}")
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{field} is {value:g}: it must be {low:g} to {high:g}")
        return value

    if pb.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {pb.max_tokens}: it must be 1 or more, or 0 for the default")
    if len(pb.stop) > MAX_STOPS or any(not s or len(s) > MAX_NAME_BYTES for s in pb.stop):
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} texts of 1 to {MAX_NAME_BYTES} characters")
    if pb.json_schema and pb.grammar:
        raise InvalidRequest("json_schema and grammar exclude each other: send one")
    for what, rules in (("json_schema", pb.json_schema), ("grammar", pb.grammar)):
        if len(rules.encode()) > MAX_RULES_BYTES:
            raise InvalidRequest(f"{what} is {len(rules.encode())} bytes long: at most {MAX_RULES_BYTES}")
    if pb.json_schema:
        _object("json_schema", pb.json_schema)
    if pb.ignore_eos and (pb.json_schema or pb.grammar):
        raise InvalidRequest("ignore_eos excludes json_schema and grammar: these say where an answer ends")
    if not 0 <= pb.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs is {pb.top_logprobs}: it must be 0 to {MAX_TOP_LOGPROBS}")
    if pb.top_logprobs and not pb.logprobs:
        raise InvalidRequest(f"top_logprobs is {pb.top_logprobs}, but logprobs is false: set it too")
    top_p = bounded("top_p", 0.0, 1.0, defaults.top_p)
    if top_p == 0.0:
        raise InvalidRequest("top_p is 0: it must be greater than 0 and at most 1 (temperature 0 is greedy)")
    return SamplingParams(
        max_tokens=pb.max_tokens or defaults.max_tokens,
        temperature=bounded("temperature", 0.0, 10.0, defaults.temperature),
        top_p=top_p,
        top_k=int(bounded("top_k", 0, 1_000_000, defaults.top_k)),
        min_p=bounded("min_p", 0.0, 1.0, defaults.min_p),
        repeat_penalty=bounded("repeat_penalty", 0.01, 10.0, defaults.repeat_penalty),
        seed=pb.seed if pb.HasField("seed") else defaults.seed,
        stop=tuple(pb.stop),
        json_schema=pb.json_schema,
        grammar=pb.grammar,
        presence_penalty=bounded("presence_penalty", -2.0, 2.0, defaults.presence_penalty),
        frequency_penalty=bounded("frequency_penalty", -2.0, 2.0, defaults.frequency_penalty),
        logit_bias=_logit_bias(pb),
        logprobs=pb.logprobs,
        top_logprobs=pb.top_logprobs,
        ignore_eos=pb.ignore_eos,
        think=pb.think if pb.HasField("think") else None,
    )


def _logit_bias(pb: types_pb2.SamplingParams) -> tuple[tuple[int, float], ...]:
    if len(pb.logit_bias) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias has {len(pb.logit_bias)} tokens: at most {MAX_BIASES}")
    for token, bias in pb.logit_bias.items():
        if not -100.0 <= bias <= 100.0:  # not a number is refused too
            raise InvalidRequest(f"logit_bias of token {token} is {bias:g}: it must be -100 to 100")
    return tuple(sorted(pb.logit_bias.items()))


def strategy(text: str) -> Strategy:
    """A strategy by name; empty is auto. Raises InvalidRequest."""
    try:
        return Strategy(text or "auto")
    except ValueError:
        known = ", ".join(Strategy)
        raise InvalidRequest(f"strategy {_short(text)} is unknown: it must be one of {known}") from None


def poll_request(pb: vote_pb2.PollRequest) -> GenerateRequest:
    """A coordinator's wish as a local request; the candidates asked for are counted, their ids stay in `pb`."""
    ids = list(pb.candidates)
    if not ids or len(ids) > MAX_CANDIDATES or len(set(ids)) != len(ids) or 0 in ids:
        raise InvalidRequest(f"poll asks for {len(ids)} candidates: 1 to {MAX_CANDIDATES}, with distinct ids from 1")
    counted_by = strategy(pb.strategy)
    if counted_by is Strategy.AUTO:
        raise InvalidRequest("strategy is auto: a poll says by which one the vote is counted")
    return GenerateRequest(
        messages=messages(pb.messages),
        topic=name("topic", pb.topic),
        candidates=len(ids),
        strategy=counted_by,
        scope=Scope.LOCAL,
        params=sampling_params(pb.params, SamplingParams()),
        tools=tools(pb.tools),
        request_id=name("request_id", pb.request_id),
    )


def name(what: str, text: str) -> str:
    """A name from the wire, checked. Raises InvalidRequest."""
    if len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(f"{what} is {len(text.encode())} bytes long: at most {MAX_NAME_BYTES}")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InvalidRequest(f"{what} {text!r} has control characters")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


# ---- from a peer: bounded ------------------------------------------------------------------------------------------


def candidate(pb: types_pb2.Candidate, node: str, model: str = "") -> Candidate:
    """A candidate of a peer, which is `node` and has `model`, whatever it says; numbers that make no sense become
    harmless ones."""
    try:
        reason = FinishReason(pb.finish_reason)
    except ValueError:
        reason = FinishReason.STOP
    logprob = pb.mean_logprob if math.isfinite(pb.mean_logprob) and pb.mean_logprob <= 0 else -100.0
    return Candidate(
        id=pb.id,
        node=node,
        text=pb.text,
        tokens=pb.tokens,
        mean_logprob=logprob,
        finish_reason=reason,
        latency_ms=pb.latency_ms if math.isfinite(pb.latency_ms) and pb.latency_ms >= 0 else 0.0,
        tool_calls=tuple(tool_call(c) for c in pb.tool_calls),
        logprobs=tuple(_token_logprob(t) for t in pb.logprobs),
        model=model,
        stopped_by=pb.stopped_by,
    )


def _token_logprob(pb: types_pb2.TokenLogprob | types_pb2.TopLogprob) -> TokenLogprob:
    logprob = pb.logprob if math.isfinite(pb.logprob) and pb.logprob <= 0 else -9999.0
    top = pb.top_logprobs if isinstance(pb, types_pb2.TokenLogprob) else ()
    return TokenLogprob(pb.token, logprob, pb.bytes, pb.id, tuple(map(_token_logprob, top)))


def tally(pb: types_pb2.Tally, ballots: dict[int, Ballot]) -> Tally:
    """A peer's tally; medoids are taken from its own ballots. Raises InvalidRequest if one never came."""
    try:
        clusters = tuple(
            Cluster(c.key, c.count, c.weight, ballots[c.medoid_id], tuple(sorted(c.members))) for c in pb.clusters
        )
    except KeyError as e:
        raise InvalidRequest(f"tally names candidate {e}, whose ballot never came") from None
    return Tally(strategy(pb.strategy), clusters, pb.planned, pb.finished)


def version(pb: types_pb2.Version) -> Version:
    """A version, checked: one that nothing could follow would block its topic for ever. Raises InvalidRequest."""
    if pb.epoch > MAX_TURN or pb.turn > MAX_TURN:
        raise InvalidRequest(f"version {pb.epoch}.{pb.turn} is out of range")
    return Version(pb.epoch, pb.turn, name("version.node_id", pb.node_id))


def node_info(pb: types_pb2.NodeInfo) -> NodeInfo:
    """A node as it describes itself; names are cut and safe to show, numbers bounded."""
    try:
        state = NodeState(pb.state)
    except ValueError:
        state = NodeState.ALIVE

    def shown(text: str, most: int) -> str:
        return "".join(c for c in text[:most] if c.isprintable())

    def number(value: float, most: float) -> float:
        return min(max(value, 0.0), most) if math.isfinite(value) else 0.0

    return NodeInfo(
        id=shown(pb.id, 64),
        address=shown(pb.address, 256),
        name=shown(pb.name, 64),
        model=shown(pb.model, 128),
        fingerprint=shown(pb.fingerprint, 128),
        backend=shown(pb.backend, 16),
        state=state,
        load=number(pb.load, 1.0),
        sequences=min(pb.sequences, 256),
        free_sequences=min(pb.free_sequences, 256),
        decode_tokens_per_s=number(pb.decode_tokens_per_s, 1e6),
        round_trip_ms=number(pb.round_trip_ms, 1e6),
        incarnation=pb.incarnation,
        version=shown(pb.version, 32),
        local_address=shown(pb.local_address, 256),
        lends_bytes=min(pb.lends_bytes, MAX_LENT_BYTES),
        lent_to=shown(pb.lent_to, 64),
        borrows_from=tuple(shown(each, 64) for each in pb.borrows_from[:MAX_LENDERS]),
    )
