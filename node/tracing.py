"""Traces of requests over all nodes, by OpenTelemetry, where it is installed (`conclave[otel]`) and asked for.

OpenTelemetry's own variables ask for it: OTEL_TRACES_EXPORTER, or OTEL_EXPORTER_OTLP_ENDPOINT (the specification's
"environment variable" pages); the others that its SDK knows (sampler, service name, propagators, headers) hold as well.
Otherwise nothing of it is imported, and a request pays a few calls of functions that return at once.

One vote is one trace: a client's `traceparent` (https://www.w3.org/TR/trace-context/) comes in with HTTP headers or
gRPC metadata and goes on to peers with their calls. The spans of one turn:

    chat MODEL          the request, on the node that is asked; GenAI semantic conventions
      queue, prefill, decode      this node's part
      poll              a peer's part, as it is asked for; the peer's own span of that name is below it, with its three
      append            the turn goes to its log and to peers', who each have a span of that name below it
      decide            the outcome is told to a peer

What is said between a request and its answer is never in a span: only numbers, names and ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

INTERNAL, SERVER, CLIENT = "INTERNAL", "SERVER", "CLIENT"  # opentelemetry.trace.SpanKind
ASKS = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console", "none")
PROTOCOLS = ("http/protobuf", "grpc")
INSTALL = "`pip install 'conclave[otel]'`, or `.venv/bin/pip install -e '.[otel]'` in a clone"
FLUSH_S = 2.0  # how long a stop waits for what was not sent yet
Values = Mapping[str, Any]

_tracer: Any = None
_provider: Any = None
# OpenTelemetry's context of what is being done in this task: a span of ours, or one of the caller's elsewhere.
_here: ContextVar[Any] = ContextVar("trace", default=None)


class Span:
    """A part of the work on a request. All of it is nothing where no traces are asked for (`OFF`)."""

    __slots__ = ("_context", "_span")

    def __init__(self, span: Any = None) -> None:
        self._span = span
        self._context: Any = None
        if span is not None:
            from opentelemetry.trace import set_span_in_context

            self._context = set_span_in_context(span)

    def child(self, name: str, values: Values | None = None, kind: str = INTERNAL) -> Span:
        """A part of this part, which begins now."""
        return self if self._span is None else _start(name, values, kind, self._context)

    def block(self, name: str, values: Values | None = None, kind: str = INTERNAL) -> AbstractContextManager[Span]:
        """A block that is a part of this part; calls to peers in it carry the trace on. Not around a `yield`."""
        return _NOTHING if self._span is None else _block(self.child(name, values, kind))

    def past(self, name: str, began_ns: int, ended_ns: int, values: Values | None = None) -> None:
        """A part of this part that is over; nanoseconds since the epoch."""
        if self._span is not None:
            _start(name, values, INTERNAL, self._context, began_ns).end(ended_ns=ended_ns)

    def tell(self, values: Values) -> None:
        """Say more of it."""
        if self._span is not None:
            self._span.set_attributes(values)

    def end(self, error: str = "", *, ended_ns: int | None = None) -> None:
        """It is over; `error` is the code of what it failed with. A second time is ignored."""
        if self._span is None or not self._span.is_recording():
            return
        if error:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, error)
            self._span.set_attribute("error.type", error)
        self._span.end(ended_ns)

    @property
    def is_on(self) -> bool:
        """Whether anybody looks at it."""
        return self._span is not None

    @property
    def trace(self) -> str:
        """The id of its trace, 32 hex digits; empty if there is none."""
        return "" if self._span is None else format(self._span.get_span_context().trace_id, "032x")


OFF = Span()
_NOTHING = contextlib.nullcontext(OFF)


def is_on() -> bool:
    """Whether traces are made."""
    return _tracer is not None


def start(name: str, values: Values | None = None, kind: str = INTERNAL) -> Span:
    """A part that begins now, below what this task does."""
    return OFF if _tracer is None else _start(name, values, kind, _here.get())


def span(name: str, values: Values | None = None, kind: str = INTERNAL) -> AbstractContextManager[Span]:
    """A block that is a span of its own. Not around a `yield`."""
    return _NOTHING if _tracer is None else _block(_start(name, values, kind, _here.get()))


def arrived(headers: Iterable[tuple[str, str | bytes]]) -> None:
    """A request came in with these headers: what is done for it in this task is part of its caller's trace."""
    if _tracer is None:
        return
    from opentelemetry import propagate

    found = {k.lower(): v for k, v in headers if isinstance(v, str)}
    _here.set(propagate.extract(found))


def metadata() -> tuple[tuple[str, str], ...] | None:
    """What a call to a peer carries on, as gRPC's metadata."""
    if _tracer is None or (context := _here.get()) is None:
        return None
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return tuple((k.lower(), v) for k, v in carrier.items())


# ---- set-up ----------------------------------------------------------------------------------------------------------


def is_asked(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return any(environ.get(name, "").strip() for name in ASKS) and _exporters(environ) != ["none"]


def _exporters(environ: Mapping[str, str]) -> list[str]:
    return [e.strip() for e in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if e.strip()] or ["otlp"]


def _protocol(environ: Mapping[str, str]) -> str:
    named = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((environ[n].strip() for n in named if environ.get(n, "").strip()), PROTOCOLS[0])


def endpoint(environ: Mapping[str, str]) -> str:
    """Where OTLP is sent, by the specification's rules; empty if nowhere."""
    if "otlp" not in _exporters(environ):
        return ""
    default = "http://localhost:4317" if _protocol(environ) == "grpc" else "http://localhost:4318"
    named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    found = next((environ[n].strip() for n in named if environ.get(n, "").strip()), default)
    return found if "://" in found else f"http://{found}"  # gRPC's may be HOST:PORT


def problem(environ: Mapping[str, str]) -> str:
    """Why the traces that are asked for cannot be made, in one line; empty if they can, or are not asked for."""
    if not is_asked(environ):
        return ""
    unknown = [e for e in _exporters(environ) if e not in EXPORTERS]
    if unknown:
        return f"no traces: OTEL_TRACES_EXPORTER is {unknown[0]!r}: it must be one of {', '.join(EXPORTERS)}"
    if _protocol(environ) not in PROTOCOLS:
        what = _protocol(environ)
        return f"no traces: OTEL_EXPORTER_OTLP_PROTOCOL is {what!r}: it must be one of {', '.join(PROTOCOLS)}"
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        return f"no traces: OTEL_* variables ask for them and OpenTelemetry is not installed: {INSTALL}"
    return ""


def set_up(environ: Mapping[str, str], node_id: str, version: str) -> str:
    """Begin to make traces if the environment asks for them; why they cannot be made, or nothing."""
    global _tracer, _provider
    if not is_asked(environ) or (why := problem(environ)):
        return why if is_asked(environ) else ""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    about = {"service.instance.id": node_id, "service.version": version}
    if "OTEL_SERVICE_NAME" not in environ and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        about["service.name"] = "conclave"
    try:
        made = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        for exporter in _exporters(environ):
            if exporter == "otlp":
                made.add_span_processor(BatchSpanProcessor(_otlp(environ)))
            elif exporter == "console":
                made.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    except Exception as e:  # OpenTelemetry's: of a value that it cannot read, for instance
        return f"no traces: OpenTelemetry refuses its OTEL_* variables: {e}"
    use(made, version)
    return ""


def use(provider: Any, version: str = "") -> None:
    """Make traces with this TracerProvider; with None, no more."""
    global _tracer, _provider
    _provider = provider
    _tracer = provider.get_tracer("conclave", version) if provider is not None else None


def _otlp(environ: Mapping[str, str]) -> Any:
    if _protocol(environ) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


def close() -> None:
    """Send what was not sent yet, within `FLUSH_S` seconds: a collector that is away must not hold up a stop."""
    provider = _provider
    use(None)
    if provider is not None:
        flush = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


def _start(name: str, values: Values | None, kind: str, context: Any, began_ns: int | None = None) -> Span:
    if _tracer is None:  # closed while a request ended
        return OFF
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind

    # Never OpenTelemetry's own idea of the current span: what is said here is explicit.
    parent = context if context is not None else Context()
    began = began_ns or time.time_ns()
    return Span(_tracer.start_span(name, parent, SpanKind[kind], attributes=values, start_time=began))


@contextlib.contextmanager
def _block(span: Span) -> Iterator[Span]:
    token = _here.set(span._context)
    error = ""
    try:
        yield span
    except asyncio.CancelledError:  # it is no longer wanted: a vote was decided, a client left
        span.tell({"conclave.cancelled": True})
        raise
    except BaseException as e:
        error = failure(e)
        raise
    finally:
        _here.reset(token)
        span.end(error)


def failure(error: BaseException) -> str:
    """What a span says of an error: the code of one of ours, else the name of its class."""
    return str(getattr(error, "code", "")) or type(error).__name__
