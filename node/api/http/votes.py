"""The `conclave` object: how the vote went, and what a stream of events tells on the way."""

from __future__ import annotations

from typing import Any

from node.coordinator import Leads, Planned, Progressed, Voted, Wrote
from node.types import Candidate, GenerateResult


def outcome(result: GenerateResult) -> dict[str, Any]:
    """How an answer was found, in the proto's words (`node.v1.Outcome` and what stands around it)."""
    o, u, t = result.outcome, result.usage, result.timings
    out: dict[str, Any] = {
        "strategy": o.strategy,
        "winner": o.winner,
        "confidence": o.confidence,
        "margin": o.margin,
        "planned": o.planned,
        "finished": o.finished,
        "stopped_early": o.stopped_early,
        "disagreement": o.disagreement,
        "quorum": o.quorum,
        "dissent": o.dissent,
        "clusters": [
            {
                "key": c.key,
                "count": c.count,
                "weight": c.weight,
                "medoid": c.medoid.candidate.text,
                "members": c.members,
            }
            for c in o.clusters
        ],
        "candidates": [candidate(c, result.answers.get(c.id, "")) for c in result.candidates],
        "lost": [{"node": x.node, "reason": x.reason, "candidates": x.candidates} for x in o.lost],
        "warnings": o.warnings,
        "models": [{"model": m.model, "weight": m.weight, "candidates": m.candidates} for m in o.models],
        "candidate_tokens": u.candidates,
        "timings": {
            "queue_ms": round(t.queue_ms, 3),
            "prefill_ms": round(t.prefill_ms, 3),
            "first_token_ms": round(t.first_token_ms, 3),
            "total_ms": round(t.total_ms, 3),
        },
        "request_id": result.request_id,
    }
    if result.topic:
        out["topic"], out["turn"] = result.topic, result.version.turn
    return out


def candidate(c: Candidate, answer: str) -> dict[str, Any]:
    """A finished candidate."""
    return {
        "id": c.id,
        "node": c.node,
        "model": c.model,
        "text": c.text,
        "answer": answer,
        "tokens": c.tokens,
        "mean_logprob": c.mean_logprob,
        "latency_ms": round(c.latency_ms, 3),
        "finish_reason": c.finish_reason,
    }


def event(e: Planned | Wrote | Voted | Leads | Progressed) -> dict[str, Any]:
    """What happens while an answer is found."""
    if isinstance(e, Progressed):
        return {"event": "progress", "computed": e.computed, "cached": e.cached, "prompt": e.prompt}
    if isinstance(e, Leads):
        found = {"candidate": e.ballot.candidate.id, "answer": e.ballot.key, "text": e.ballot.candidate.text}
        return {"event": "leader", **found, "share": e.share, "finished": e.finished}
    if isinstance(e, Wrote):
        return {"event": "token", "candidate": e.candidate, "text": e.text}
    if isinstance(e, Voted):
        return {"event": "candidate", **candidate(e.ballot.candidate, e.ballot.key)}
    shares = [{"node": node, "candidates": ids} for node, ids in e.shares]
    return {"event": "plan", "strategy": e.strategy, "shares": shares, "request_id": e.request_id}
