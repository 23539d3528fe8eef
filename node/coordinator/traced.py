"""What spans say of requests, in the words of OpenTelemetry's GenAI semantic conventions where they have them."""

from __future__ import annotations

import time
from typing import Any

from node import tracing
from node.engine import scheduler
from node.types import GenerateRequest, GenerateResult


def started(request: GenerateRequest, model: str, node: str) -> tracing.Span:
    """The span of a request that begins now; it is named as the conventions say."""
    if not tracing.is_on():
        return tracing.OFF
    operation = "text_completion" if request.is_raw else "chat"
    params = request.params
    values: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "conclave",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "conclave.request_id": request.request_id,
        "conclave.node": node,
        "conclave.scope": request.scope.value,
    }
    if request.topic:
        values["gen_ai.conversation.id"] = request.topic
    if params.seed is not None:
        values["gen_ai.request.seed"] = params.seed % 2**63  # an attribute is a signed number
    if request.candidates:
        values["gen_ai.request.choice.count"] = request.candidates
    return tracing.start(f"{operation} {model}", values, tracing.SERVER)


def answered(span: tracing.Span, result: GenerateResult, model: str) -> None:
    """Say how a request was answered."""
    if not span.is_on:
        return
    outcome, usage = result.outcome, result.usage
    span.tell(
        {
            "gen_ai.response.id": result.request_id,
            "gen_ai.response.model": model,
            "gen_ai.response.finish_reasons": [result.finish_reason.value],
            "gen_ai.usage.input_tokens": usage.prompt,
            "gen_ai.usage.cache_read.input_tokens": usage.cached,
            "gen_ai.usage.output_tokens": usage.completion,
            "conclave.strategy": outcome.strategy.value,
            "conclave.candidates.planned": outcome.planned,
            "conclave.candidates.finished": outcome.finished,
            "conclave.candidates.tokens": usage.candidates,
            "conclave.confidence": outcome.confidence,
            "conclave.stopped_early": outcome.stopped_early,
            "conclave.lost_nodes": len(outcome.lost),
        }
    )


class Phases:
    """The spans of a job on this node's engine, below a request's or a poll's: queue, prefill, decode."""

    def __init__(self, span: tracing.Span) -> None:
        self._span = span
        self._decode = tracing.OFF
        self._tokens = self._ended = 0

    def see(self, event: scheduler.Event) -> None:
        """Take in what the engine tells."""
        if not self._span.is_on:
            return
        if isinstance(event, scheduler.Prefilled):
            now = time.time_ns()
            computing = now - int(event.prefill_ms * 1e6)
            self._span.past("queue", computing - int(event.queue_ms * 1e6), computing)
            said = {
                "gen_ai.usage.input_tokens": event.prompt,
                "gen_ai.usage.cache_read.input_tokens": event.cached,
            }
            self._span.past("prefill", computing, now, said)
            self._decode = self._span.child("decode")
        elif isinstance(event, scheduler.Done):
            self._tokens += event.candidate.tokens
            self._ended += 1

    def end(self) -> None:
        """The job is over, or was left."""
        if self._decode.is_on:
            said = {"gen_ai.usage.output_tokens": self._tokens, "conclave.candidates.ended": self._ended}
            self._decode.tell(said)
            self._decode.end()
