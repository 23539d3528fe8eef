"""Traces: what the environment asks for, one trace for one vote, and nothing where nobody asks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from node import tracing
from node.engine.fake import FakeSpec
from node.errors import NotFound
from node.types import GenerateRequest, Message, SamplingParams
from tests.alone import coordinator

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    try:
        yield exporter
    finally:
        tracing.use(None)
        tracing._here.set(None)


def asked(text: str, **fields: Any) -> GenerateRequest:
    return GenerateRequest((Message("user", text),), **fields)


async def test_a_request_has_its_spans_below_its_callers(spans: InMemorySpanExporter) -> None:
    async with coordinator(FakeSpec()) as node:
        tracing.arrived([("Traceparent", PARENT), ("x-bin", b"\xff")])
        params = SamplingParams(seed=2**64 - 1)
        result = await node.generate(asked("my secret words", candidates=3, topic="t", params=params))
    found = {s.name: s for s in spans.get_finished_spans()}
    assert set(found) == {"chat fake", "queue", "prefill", "decode"}
    request = found["chat fake"]
    assert format(request.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(request.parent.span_id, "016x") == PARENT.split("-")[2]
    for name in ("queue", "prefill", "decode"):
        assert found[name].parent.span_id == request.context.span_id
        assert found[name].context.trace_id == request.context.trace_id
        assert found[name].start_time <= found[name].end_time
    assert found["queue"].end_time == found["prefill"].start_time
    assert found["prefill"].end_time <= found["decode"].start_time
    said = request.attributes
    assert said["gen_ai.operation.name"] == "chat"
    assert (said["gen_ai.request.model"], said["gen_ai.conversation.id"]) == ("fake", "t")
    assert said["gen_ai.usage.input_tokens"] == result.usage.prompt
    assert said["gen_ai.usage.output_tokens"] == result.usage.completion
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    assert said["conclave.outcome"] == "ok"
    assert found["decode"].attributes["gen_ai.usage.output_tokens"] == result.usage.candidates
    everything = str([(s.name, dict(s.attributes)) for s in spans.get_finished_spans()])
    assert "secret" not in everything, "what was said is in no span"
    assert "echo" not in everything


async def test_failures_and_clients_that_leave(spans: InMemorySpanExporter) -> None:
    async with coordinator(FakeSpec(answers=(" ".join(["w"] * 500),), tokens_per_s=100)) as node:
        with pytest.raises(NotFound):
            await node.generate(asked("hi", topic="nowhere", append=True))
        [failed] = spans.get_finished_spans()
        assert failed.attributes["error.type"] == "NOT_FOUND"
        assert not failed.status.is_ok
        spans.clear()
        async with contextlib.aclosing(node.stream(asked("hi", candidates=1))) as events:
            async for event in events:
                if type(event).__name__ == "Wrote":
                    break
        found = {s.name: s for s in spans.get_finished_spans()}
        assert found["chat fake"].attributes["conclave.outcome"] == "left"
        assert "error.type" not in found["chat fake"].attributes
        assert "decode" in found, "what was begun is told"


async def test_a_block_is_a_span_and_carries_on(spans: InMemorySpanExporter) -> None:
    assert tracing.metadata() is None
    carried = []

    def work() -> None:
        with tracing.span("outer") as outer, outer.block("inner"):
            carried.extend(tracing.metadata() or ())
            raise NotFound("x")

    with pytest.raises(NotFound):
        work()
    assert tracing.metadata() is None
    inner, out = spans.get_finished_spans()
    assert (inner.name, out.name) == ("inner", "outer")
    assert inner.parent.span_id == out.context.span_id
    [(key, value)] = carried
    assert key == "traceparent"
    assert value.startswith(f"00-{out.context.trace_id:032x}-{inner.context.span_id:016x}-")
    assert [s.attributes["error.type"] for s in (inner, out)] == ["NOT_FOUND"] * 2


def test_headers_that_are_no_trace_are_ignored(spans: InMemorySpanExporter) -> None:
    for bad in ("", "x", "00-0-0-0", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\x00" * 5000, PARENT + "-more"):
        tracing.arrived([("traceparent", bad), ("tracestate", "=" * 5000), ("baggage", "a" * 9000)])
        tracing.start("x").end()
        assert spans.get_finished_spans()[-1].parent is None


async def test_off_is_nothing() -> None:
    assert not tracing.is_on()
    assert tracing.start("x") is tracing.OFF
    with tracing.span("x") as span, span.block("y") as inner:
        assert inner is tracing.OFF
        assert tracing.metadata() is None
    tracing.arrived([("traceparent", PARENT)])
    assert tracing._here.get() is None


@pytest.mark.parametrize(
    ("environ", "asks"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_what_asks_for_traces(environ: dict[str, str], asks: bool) -> None:
    assert tracing.is_asked(environ) == asks


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin': it must be one of otlp, console, none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "must be one of http/protobuf, grpc"),
    ],
)
def test_what_cannot_be_made_is_a_line(environ: dict[str, str], line: str) -> None:
    assert line in tracing.set_up(environ, "n", "1")
    assert not tracing.is_on()


def test_without_the_extra_it_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert "pip install 'conclave[otel]'" in tracing.set_up(ENDPOINT, "n", "1")
    assert not tracing.is_on()
    assert tracing.set_up({}, "n", "1") == ""


def test_nothing_of_it_is_imported_unasked() -> None:
    code = "import node.app, node.cli, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
