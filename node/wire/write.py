"""What goes to the wire."""

from __future__ import annotations

from collections.abc import Sequence

from node.types import (
    Ballot,
    Candidate,
    Cluster,
    GenerateRequest,
    GenerateResult,
    Loss,
    Message,
    ModelVote,
    NodeInfo,
    Outcome,
    SamplingParams,
    Scope,
    Tally,
    TokenLogprob,
    Tool,
    ToolCall,
    TopicInfo,
    Version,
)
from node.v1 import generate_pb2, types_pb2, vote_pb2


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
        presence_penalty=p.presence_penalty,
        frequency_penalty=p.frequency_penalty,
        logit_bias=dict(p.logit_bias),
        logprobs=p.logprobs,
        top_logprobs=p.top_logprobs,
        ignore_eos=p.ignore_eos,
        think=p.think,
    )


def request_pb(r: GenerateRequest) -> generate_pb2.GenerateRequest:
    """A request for the wire; every parameter is set."""
    return generate_pb2.GenerateRequest(
        topic=r.topic,
        messages=[message_pb(m) for m in r.messages],
        append=r.append,
        begin=r.begin,
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
        answer=_sendable(answer),
        tokens=c.tokens,
        mean_logprob=c.mean_logprob,
        latency_ms=c.latency_ms,
        finish_reason=c.finish_reason.value,
        tool_calls=[tool_call_pb(t) for t in c.tool_calls],
        logprobs=[token_logprob_pb(t) for t in c.logprobs],
        model=c.model,
        stopped_by=c.stopped_by,
    )


def token_logprob_pb(t: TokenLogprob) -> types_pb2.TokenLogprob:
    """A token's log probability for the wire."""
    top = [types_pb2.TopLogprob(token=x.token, logprob=x.logprob, bytes=x.bytes, id=x.id) for x in t.top]
    return types_pb2.TokenLogprob(token=t.token, logprob=t.logprob, bytes=t.bytes, id=t.id, top_logprobs=top)


def ballot_pb(b: Ballot) -> types_pb2.Ballot:
    """A ballot for the wire."""
    return types_pb2.Ballot(
        candidate=candidate_pb(b.candidate, b.key), key=_sendable(b.key), weight=b.weight, quality=b.quality
    )


def cluster_pb(c: Cluster) -> types_pb2.Cluster:
    """A cluster for the wire."""
    return types_pb2.Cluster(
        key=_sendable(c.key),
        count=c.count,
        weight=c.weight,
        medoid=c.medoid.candidate.text,
        medoid_id=c.medoid.candidate.id,
        members=c.members,
        quality=c.medoid.quality,
        mean_logprob=c.medoid.candidate.mean_logprob,
    )


def ballots_pb(ballots: Sequence[Ballot], tally: Tally | None, free: int = 0) -> vote_pb2.Ballots:
    """Ballots that came together, and the tally with the last of them, for the wire."""
    counted = None if tally is None else tally_pb(tally)
    return vote_pb2.Ballots(ballots=map(ballot_pb, ballots), tally=counted, free_sequences=free)


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
        models=[model_vote_pb(m) for m in o.models],
    )


def model_vote_pb(m: ModelVote) -> types_pb2.ModelVote:
    """A model's part of a vote for the wire."""
    return types_pb2.ModelVote(model=m.model, fingerprint=m.fingerprint, weight=m.weight, candidates=m.candidates)


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
        lends_bytes=n.lends_bytes,
        lent_to=n.lent_to,
        borrows_from=n.borrows_from,
    )


def topic_pb(t: TopicInfo, present: set[str] | None = None) -> types_pb2.TopicInfo:
    """A topic for the wire; with the ids of the nodes that are there, also who of its holders is away."""
    return types_pb2.TopicInfo(
        topic=t.topic,
        version=version_pb(t.version),
        tokens=t.tokens,
        bytes=t.bytes,
        replicas=t.replicas,
        forgotten=t.forgotten,
        away=[r for r in t.replicas if present is not None and r not in present],
        made_ms=t.made_ms,
        branches=t.branches,
    )


def _sendable(key: str) -> str:
    """A key as UTF-8 can say it: one that was read from JSON may hold half of a surrogate pair."""
    return key.encode("utf-8", "replace").decode()
