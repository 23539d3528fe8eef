"""`node.v1` messages <-> `node.types`, channel options, and the one place where errors meet gRPC codes.

What comes from the wire is validated here: each `*_request` function raises `InvalidRequest` with one line that says
what is wrong and what would be right. What is not said on the wire takes the defaults of `Defaults`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from node import errors
from node.errors import ConclaveError, InvalidRequest
from node.types import (
    Ballot,
    Candidate,
    Cluster,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Loss,
    Message,
    NodeInfo,
    NodeState,
    Outcome,
    SamplingParams,
    Scope,
    Strategy,
    Tally,
    Tool,
    ToolCall,
    TopicInfo,
    Version,
)
from node.v1 import generate_pb2, types_pb2, vote_pb2

MAX_MESSAGE_BYTES = 64 << 20  # Larger than any prompt that fits a context; snapshots travel in chunks.
MAX_CANDIDATES = 64  # Gains flatten after about 10 (DESIGN §5); 256 is llama.cpp's limit on sequences.
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_TEXTS = 256
MAX_NAME_BYTES = 256
ROLES = ("system", "user", "assistant", "tool")

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A killed machine sends no FIN: without pings a stream to it hangs until TCP gives up (minutes).
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Channels of one process must not share a connection: a peer is judged by its own.
    ("grpc.use_local_subchannel_pool", 1),
    # Everything here is on one LAN; a proxy from the environment would only break it.
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2000),
    ("grpc.http2.max_ping_strikes", 0),
    # Without this a second node on the same port would silently share it.
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request takes for what it leaves out; from the node's configuration."""

    candidates: int = 0  # 0: by the number of nodes that take part
    strategy: Strategy = Strategy.AUTO
    params: SamplingParams = field(default_factory=SamplingParams)


# ---- errors --------------------------------------------------------------------------------------------------------

_CODES: dict[str, type[ConclaveError]] = {
    cls.code: cls
    for cls in (
        errors.BackendError,
        errors.InvalidRequest,
        errors.NotFound,
        errors.Overloaded,
        errors.PeerUnavailable,
        errors.DeadlineExceeded,
        errors.IncompatibleSnapshot,
        errors.CorruptSnapshot,
        errors.Unauthenticated,
        errors.NotSupported,
    )
}


def status_code(error: ConclaveError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return grpc.StatusCode[error.code]


def error_from_rpc(error: grpc.RpcError) -> ConclaveError:
    """The error that a failed call stands for; codes outside the taxonomy become PeerUnavailable or BackendError."""
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    detail = (error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None) or str(code.name)
    if code is grpc.StatusCode.CANCELLED:
        return errors.PeerUnavailable(f"the call was cancelled: {detail}")
    return _CODES.get(code.name, errors.BackendError)(detail)


# ---- requests: validated -------------------------------------------------------------------------------------------


def generate_request(pb: generate_pb2.GenerateRequest, defaults: Defaults) -> GenerateRequest:
    """A request as asked, checked, with defaults filled in. Raises InvalidRequest."""
    if pb.candidates < 0 or pb.candidates > MAX_CANDIDATES:
        raise InvalidRequest(f"candidates is {pb.candidates}: it must be 1 to {MAX_CANDIDATES}, or 0 for the default")
    if pb.append and not pb.topic:
        raise InvalidRequest("append needs a topic: name the conversation that the messages continue")
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
    )


def messages(pbs: Sequence[types_pb2.Message]) -> tuple[Message, ...]:
    """A conversation, checked: known roles, something to answer at its end. Raises InvalidRequest."""
    if not pbs:
        raise InvalidRequest("messages is empty: send at least one user message")
    if len(pbs) > MAX_MESSAGES:
        raise InvalidRequest(f"{len(pbs)} messages: at most {MAX_MESSAGES}")
    for i, pb in enumerate(pbs):
        if pb.role not in ROLES:
            raise InvalidRequest(f"messages[{i}].role is {pb.role!r}: it must be one of {', '.join(ROLES)}")
        if pb.role == "user" and not pb.content.strip():
            raise InvalidRequest(f"messages[{i}] is an empty prompt: a user message needs some text")
    if pbs[-1].role not in ("user", "tool"):
        raise InvalidRequest(f"the last message is from {pbs[-1].role!r}: it must be from user or tool")
    return tuple(message(pb) for pb in pbs)


def message(pb: types_pb2.Message) -> Message:
    """One message, as it stands."""
    return Message(pb.role, pb.content, tuple(tool_call(c) for c in pb.tool_calls), pb.tool_call_id)


def tool_call(pb: types_pb2.ToolCall) -> ToolCall:
    """A tool call, as it stands."""
    return ToolCall(name=pb.name, arguments=pb.arguments, id=pb.id)


def tools(pbs: Iterable[types_pb2.Tool]) -> tuple[Tool, ...]:
    """Tools, checked: each has a name and a JSON object for a schema. Raises InvalidRequest."""
    out = []
    for i, pb in enumerate(pbs):
        if not pb.name:
            raise InvalidRequest(f"tools[{i}] has no name")
        try:
            schema = json.loads(pb.parameters or "{}")
        except (ValueError, RecursionError) as e:
            raise InvalidRequest(f"tools[{i}].parameters ({pb.name}) is not JSON: {e}") from None
        if not isinstance(schema, dict):
            raise InvalidRequest(f"tools[{i}].parameters ({pb.name}) must be a JSON object")
        out.append(Tool(pb.name, pb.description, pb.parameters or "{}"))
    return tuple(out)


def sampling_params(pb: types_pb2.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Sampling parameters, checked. Raises InvalidRequest."""

    def bounded(field: str, low: float, high: float, default: float) -> float:
        if not pb.HasField(field):  # type: ignore[arg-type]
            return default
        value = float(getattr(pb, field))
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidRequest(f"{field} is {value:g}: it must be {low:g} to {high:g}")
        return value

    if pb.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {pb.max_tokens}: it must be 1 or more, or 0 for the default")
    if len(pb.stop) > MAX_STOPS or any(not s or len(s) > MAX_NAME_BYTES for s in pb.stop):
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} texts of 1 to {MAX_NAME_BYTES} characters")
    if pb.json_schema and pb.grammar:
        raise InvalidRequest("json_schema and grammar exclude each other: send one")
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
    )


def strategy(text: str) -> Strategy:
    """A strategy by name; empty is auto. Raises InvalidRequest."""
    try:
        return Strategy(text or "auto")
    except ValueError:
        known = ", ".join(Strategy)
        raise InvalidRequest(f"strategy {text!r} is unknown: it must be one of {known}") from None


def poll_request(pb: vote_pb2.PollRequest) -> GenerateRequest:
    """A coordinator's wish as a local request; the candidates asked for are counted, their ids stay in `pb`."""
    ids = list(pb.candidates)
    if not ids or len(ids) > MAX_CANDIDATES or len(set(ids)) != len(ids) or 0 in ids:
        raise InvalidRequest(f"poll asks for {len(ids)} candidates: 1 to {MAX_CANDIDATES}, with distinct ids from 1")
    return GenerateRequest(
        messages=messages(pb.messages),
        topic=name("topic", pb.topic),
        candidates=len(ids),
        strategy=strategy(pb.strategy),
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


# ---- from a peer: bounded ------------------------------------------------------------------------------------------


def candidate(pb: types_pb2.Candidate) -> Candidate:
    """A peer's candidate; numbers that make no sense become harmless ones."""
    try:
        reason = FinishReason(pb.finish_reason)
    except ValueError:
        reason = FinishReason.STOP
    logprob = pb.mean_logprob if math.isfinite(pb.mean_logprob) and pb.mean_logprob <= 0 else -100.0
    return Candidate(
        id=pb.id,
        node=pb.node,
        text=pb.text,
        tokens=pb.tokens,
        mean_logprob=logprob,
        finish_reason=reason,
        latency_ms=pb.latency_ms if math.isfinite(pb.latency_ms) and pb.latency_ms >= 0 else 0.0,
        tool_calls=tuple(tool_call(c) for c in pb.tool_calls),
    )


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
    """A version, as it stands."""
    return Version(pb.epoch, pb.turn, pb.node_id)


def node_info(pb: types_pb2.NodeInfo) -> NodeInfo:
    """A node as it describes itself; names are cut, numbers bounded."""
    try:
        state = NodeState(pb.state)
    except ValueError:
        state = NodeState.ALIVE

    def number(value: float, most: float) -> float:
        return min(max(value, 0.0), most) if math.isfinite(value) else 0.0

    return NodeInfo(
        id=pb.id[:64],
        address=pb.address[:256],
        name=pb.name[:64],
        model=pb.model[:128],
        fingerprint=pb.fingerprint[:128],
        backend=pb.backend[:16],
        state=state,
        load=number(pb.load, 1.0),
        sequences=min(pb.sequences, 256),
        free_sequences=min(pb.free_sequences, 256),
        decode_tokens_per_s=number(pb.decode_tokens_per_s, 1e6),
        round_trip_ms=number(pb.round_trip_ms, 1e6),
        incarnation=pb.incarnation,
        version=pb.version[:32],
        local_address=pb.local_address[:256],
    )


# ---- to the wire ---------------------------------------------------------------------------------------------------


def message_pb(m: Message) -> types_pb2.Message:
    """A message for the wire."""
    return types_pb2.Message(
        role=m.role,
        content=m.content,
        tool_calls=[tool_call_pb(c) for c in m.tool_calls],
        tool_call_id=m.tool_call_id,
    )


def tool_call_pb(c: ToolCall) -> types_pb2.ToolCall:
    """A tool call for the wire."""
    return types_pb2.ToolCall(id=c.id, name=c.name, arguments=c.arguments)


def tool_pb(t: Tool) -> types_pb2.Tool:
    """A tool for the wire."""
    return types_pb2.Tool(name=t.name, description=t.description, parameters=t.parameters)


def params_pb(p: SamplingParams) -> types_pb2.SamplingParams:
    """Sampling parameters for the wire; every field is set."""
    return types_pb2.SamplingParams(
        max_tokens=p.max_tokens,
        temperature=p.temperature,
        top_p=p.top_p,
        top_k=p.top_k,
        min_p=p.min_p,
        repeat_penalty=p.repeat_penalty,
        seed=p.seed,
        stop=p.stop,
        json_schema=p.json_schema,
        grammar=p.grammar,
    )


def request_pb(r: GenerateRequest) -> generate_pb2.GenerateRequest:
    """A request for the wire; every parameter is set."""
    return generate_pb2.GenerateRequest(
        topic=r.topic,
        messages=[message_pb(m) for m in r.messages],
        append=r.append,
        candidates=r.candidates,
        strategy=r.strategy.value,
        scope=generate_pb2.SCOPE_LOCAL if r.scope is Scope.LOCAL else generate_pb2.SCOPE_MESH,
        params=params_pb(r.params),
        tools=[tool_pb(t) for t in r.tools],
        model=r.model,
        request_id=r.request_id,
    )


def version_pb(v: Version) -> types_pb2.Version:
    """A version for the wire."""
    return types_pb2.Version(epoch=v.epoch, turn=v.turn, node_id=v.node_id)


def candidate_pb(c: Candidate, answer: str) -> types_pb2.Candidate:
    """A candidate with its answer key for the wire."""
    return types_pb2.Candidate(
        id=c.id,
        node=c.node,
        text=c.text,
        answer=answer,
        tokens=c.tokens,
        mean_logprob=c.mean_logprob,
        latency_ms=c.latency_ms,
        finish_reason=c.finish_reason.value,
        tool_calls=[tool_call_pb(t) for t in c.tool_calls],
    )


def ballot_pb(b: Ballot) -> types_pb2.Ballot:
    """A ballot for the wire."""
    return types_pb2.Ballot(candidate=candidate_pb(b.candidate, b.key), key=b.key, weight=b.weight, quality=b.quality)


def cluster_pb(c: Cluster) -> types_pb2.Cluster:
    """A cluster for the wire."""
    return types_pb2.Cluster(
        key=c.key,
        count=c.count,
        weight=c.weight,
        medoid=c.medoid.candidate.text,
        medoid_id=c.medoid.candidate.id,
        members=c.members,
        quality=c.medoid.quality,
        mean_logprob=c.medoid.candidate.mean_logprob,
    )


def tally_pb(t: Tally) -> types_pb2.Tally:
    """A tally for the wire."""
    return types_pb2.Tally(
        strategy=t.strategy.value,
        clusters=[cluster_pb(c) for c in t.clusters],
        planned=t.planned,
        finished=t.finished,
    )


def loss_pb(x: Loss) -> types_pb2.Loss:
    """A loss for the wire."""
    return types_pb2.Loss(node=x.node, reason=x.reason, candidates=x.candidates)


def outcome_pb(o: Outcome) -> types_pb2.Outcome:
    """An outcome for the wire."""
    return types_pb2.Outcome(
        strategy=o.strategy.value,
        winner=o.winner,
        confidence=o.confidence,
        margin=o.margin,
        clusters=[cluster_pb(c) for c in o.clusters],
        dissent=o.dissent,
        stopped_early=o.stopped_early,
        planned=o.planned,
        finished=o.finished,
        disagreement=o.disagreement,
        quorum=o.quorum,
        lost=[loss_pb(x) for x in o.lost],
        warnings=o.warnings,
    )


def response_pb(r: GenerateResult) -> generate_pb2.GenerateResponse:
    """A result for the wire."""
    return generate_pb2.GenerateResponse(
        text=r.text,
        finish_reason=r.finish_reason.value,
        topic=r.topic,
        version=version_pb(r.version) if r.topic else None,
        outcome=outcome_pb(r.outcome),
        candidates=[candidate_pb(c, r.answers.get(c.id, "")) for c in r.candidates],
        usage=types_pb2.Usage(
            prompt_tokens=r.usage.prompt,
            cached_tokens=r.usage.cached,
            completion_tokens=r.usage.completion,
            candidate_tokens=r.usage.candidates,
        ),
        timings=types_pb2.Timings(
            queue_ms=r.timings.queue_ms,
            prefill_ms=r.timings.prefill_ms,
            first_token_ms=r.timings.first_token_ms,
            total_ms=r.timings.total_ms,
        ),
        request_id=r.request_id,
        tool_calls=[tool_call_pb(c) for c in r.tool_calls],
    )


def node_info_pb(n: NodeInfo) -> types_pb2.NodeInfo:
    """A node for the wire."""
    return types_pb2.NodeInfo(
        id=n.id,
        address=n.address,
        name=n.name,
        model=n.model,
        fingerprint=n.fingerprint,
        backend=n.backend,
        state=n.state.value,
        load=n.load,
        sequences=n.sequences,
        free_sequences=n.free_sequences,
        decode_tokens_per_s=n.decode_tokens_per_s,
        round_trip_ms=n.round_trip_ms,
        incarnation=n.incarnation,
        version=n.version,
        local_address=n.local_address,
    )


def topic_pb(t: TopicInfo) -> types_pb2.TopicInfo:
    """A topic for the wire."""
    return types_pb2.TopicInfo(
        topic=t.topic, version=version_pb(t.version), tokens=t.tokens, bytes=t.bytes, replicas=t.replicas
    )
