"""One vote is one trace: two real nodes send their spans to a stand-in of an OTLP collector."""

from __future__ import annotations

import gzip
import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from swarm import Swarm, request, together, until

from node.v1 import generate_pb2

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes spans by OTLP over HTTP, as https://opentelemetry.io/docs/specs/otlp/#otlphttp says."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []  # (the node's id, span)
        held = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {a.key: a.value.string_value for a in each.resource.attributes}
                    assert about["service.name"] == "conclave"
                    held.extend((about["service.instance.id"], s) for scope in each.scope_spans for s in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace: str) -> list[tuple[str, Any]]:
        return [(node, s) for node, s in list(self.spans) if s.trace_id.hex() == trace]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_one_vote_is_one_trace_over_two_nodes(own: Swarm, collector: Collector) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    nodes = [own.start("--backend", "fake", "--early-stop", "off", **env) for _ in range(2)]
    own.ready(*nodes)
    together(*nodes)
    one, two = nodes
    body = {"messages": [{"role": "user", "content": "a secret"}], "topic": "t", "conclave": {"candidates": 4}}
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-{CALLER}-01"}
    url = f"http://{one.http_address}/v1/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        assert answer.status == 200
    # Who gets the turn by Append is told of no decision.
    wanted = Counter(
        [(one.id, n) for n in ("chat fake", "queue", "prefill", "decode", "poll", "append")]
        + [(two.id, n) for n in ("poll", "queue", "prefill", "decode", "append")]
    )
    until(lambda: len(collector.of(TRACE)) >= sum(wanted.values()), "all spans come")
    found = collector.of(TRACE)
    assert Counter((node, s.name) for node, s in found) == wanted
    by_name = {(node, s.name): s for node, s in found}
    asked = by_name[one.id, "chat fake"]
    assert asked.parent_span_id.hex() == CALLER
    for name in ("queue", "prefill", "decode", "poll", "append"):
        assert by_name[one.id, name].parent_span_id == asked.span_id, name
    for name in ("poll", "append"):
        assert by_name[two.id, name].parent_span_id == by_name[one.id, name].span_id, name
    for name in ("queue", "prefill", "decode"):
        assert by_name[two.id, name].parent_span_id == by_name[two.id, "poll"].span_id, name
    assert all(s.status.code == 0 for _, s in found)
    assert not [s for _, s in found if "secret" in str(s)]

    # By gRPC too, from the other node; without a caller's trace, each request has one of its own.
    wish = generate_pb2.StreamRequest(request=request("again", candidates=4))
    theirs = "1" * 32
    list(two.client.generate.Stream(wish, metadata=(("traceparent", f"00-{theirs}-{CALLER}-01"),)))
    until(lambda: len(collector.of(theirs)) >= 9, "all spans come")
    assert {node for node, s in collector.of(theirs) if s.name == "poll"} == {one.id, two.id}
    own.end(*nodes)
    traces = {s.trace_id.hex() for _, s in collector.spans}
    assert traces == {TRACE, theirs}, "nothing but requests is traced"


def test_a_collector_that_is_away_holds_up_nothing(own: Swarm) -> None:
    node = own.start("--join", "none", "--backend", "fake", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    own.ready(node)
    assert node.client.ask("hello").text == "echo: hello"
    assert own.end(node) == [0]


def test_without_opentelemetry_a_node_says_so_and_serves(own: Swarm, tmp_path: Any) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not installed')\n")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(tmp_path)}
    node = own.start("--join", "none", "--backend", "fake", **env)
    own.ready(node)
    assert node.client.ask("hello").text == "echo: hello"
    until(lambda: "pip install 'conclave[otel]'" in node.said(), "it says what is missing")
