"""What the coordinator and the engine count, in the format that Prometheus reads."""

from __future__ import annotations

import contextlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node import metrics
from node.engine.fake import FakeSpec
from node.errors import NotFound
from node.types import GenerateRequest, Message, SamplingParams
from tests.alone import coordinator


def samples() -> dict[str, float]:
    """All series, as `name{label=value,…}`."""
    out = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for s in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))
            out[f"{s.name}{{{labels}}}" if labels else s.name] = s.value
    return out


def grown(before: dict[str, float]) -> dict[str, float]:
    return {k: v - before.get(k, 0.0) for k, v in samples().items() if v != before.get(k, 0.0)}


def asked(text: str, **fields: object) -> GenerateRequest:
    return GenerateRequest((Message("user", text),), **fields)  # type: ignore[arg-type]


async def test_a_vote_is_counted() -> None:
    async with coordinator(FakeSpec(answers=("answer: 42",))) as node:
        before = samples()
        result = await node.generate(asked("What is 6 * 7?", candidates=8))
        found = grown(before)
    assert found["conclave_requests_total{outcome=ok}"] == 1
    assert found["conclave_request_duration_seconds_count"] == 1
    assert found["conclave_votes_total{outcome=agreed,strategy=majority}"] == 1
    assert found["conclave_votes_stopped_early_total"] == 1
    assert found["conclave_early_stop_saved_candidates_total"] == 8 - result.outcome.finished > 0
    assert found["conclave_prompt_tokens_total"] == result.usage.prompt
    assert found["conclave_generation_tokens_total"] == result.usage.candidates
    assert found["conclave_candidates_total{finish_reason=stop}"] >= result.outcome.finished
    assert found["conclave_time_to_first_token_seconds_count"] == 1
    assert found["conclave_request_queue_time_seconds_count"] == 1
    assert found["conclave_inter_token_latency_seconds_count"] >= 1


async def test_what_was_held_is_counted_as_a_hit() -> None:
    async with coordinator(FakeSpec()) as node:
        await node.generate(asked("one two three four", candidates=1, topic="t"))
        before = samples()
        result = await node.generate(asked("five", candidates=1, topic="t", append=True))
        found = grown(before)
    assert found["conclave_prefix_cache_hit_tokens_total"] == result.usage.cached > 0
    assert not any(k.startswith("conclave_votes") for k in found), "one candidate is no vote"


async def test_failures_and_clients_that_leave_are_counted() -> None:
    slow = FakeSpec(answers=(" ".join(["w"] * 500),), tokens_per_s=100)
    async with coordinator(slow) as node:
        before = samples()
        with pytest.raises(NotFound):
            await node.generate(asked("hi", topic="nowhere", append=True))
        params = SamplingParams(max_tokens=400)
        async with contextlib.aclosing(node.stream(asked("hi", candidates=1, params=params))) as events:
            async for _ in events:
                break
        found = grown(before)
    assert found["conclave_requests_total{outcome=not_found}"] == 1
    assert found["conclave_requests_total{outcome=left}"] == 1
    assert "conclave_request_duration_seconds_count" not in found
