"""What a node counts, in Prometheus' text format. The HTTP listener serves it at `/metrics`.

Names follow Prometheus' rules (base units, `_total` for counters) and, where vLLM has the same thing, vLLM's words.
Labels take values from small fixed sets only: never a topic, a request or a text. Counters belong to the process, as
Prometheus means them; gauges are set when somebody looks (`node.api`).

Counting costs about a microsecond. prometheus_client does it: small, without dependencies, the reference for Python.
"""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Otherwise each counter has a second series that nobody plots.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)  # process_resident_memory_bytes and such, where /proc is

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4

# Seconds. As vLLM's, from steps of a small model on a fast machine to long prompts on a slow one.
_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160)
_INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


def _counter(name: str, help: str, *labels: str) -> Counter:
    return Counter(f"conclave_{name}", help, labels, registry=REGISTRY)


def _gauge(name: str, help: str, *labels: str) -> Gauge:
    return Gauge(f"conclave_{name}", help, labels, registry=REGISTRY)


def _histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"conclave_{name}", help, buckets=buckets, registry=REGISTRY)


# ---- requests, as their coordinator sees them ------------------------------------------------------------------------

REQUESTS = _counter(
    "requests_total", "Requests coordinated here, by how they ended: ok, left, or an error's code.", "outcome"
)
REQUEST_SECONDS = _histogram("request_duration_seconds", "From a request's arrival to its answer.", _REQUEST_S)
HTTP_REQUESTS = _counter("http_requests_total", "HTTP requests, by route and status code.", "route", "code")

# ---- this node's engine, whoever coordinates -------------------------------------------------------------------------

PROMPT_TOKENS = _counter("prompt_tokens_total", "Tokens of prompts, computed or held.")
CACHED_TOKENS = _counter("prefix_cache_hit_tokens_total", "Tokens of prompts that were held and not computed again.")
GENERATED_TOKENS = _counter("generation_tokens_total", "Tokens written, by all candidates.")
CANDIDATES = _counter("candidates_total", "Candidates that ended here, by why.", "finish_reason")
QUEUE_SECONDS = _histogram("request_queue_time_seconds", "From a request's arrival to its admission.", _FIRST_TOKEN_S)
FIRST_TOKEN_SECONDS = _histogram(
    "time_to_first_token_seconds", "From a request's arrival to its first text.", _FIRST_TOKEN_S
)
INTER_TOKEN_SECONDS = _histogram(
    "inter_token_latency_seconds", "Between two texts of a request that is being read as it is written.", _INTER_TOKEN_S
)

# ---- votes -----------------------------------------------------------------------------------------------------------

VOTES = _counter(
    "votes_total",
    "Votes of more than one candidate, by strategy and outcome: agreed, disagreed, no_quorum (answered without one).",
    "strategy",
    "outcome",
)
EARLY_STOPS = _counter("votes_stopped_early_total", "Votes that were decided before all candidates had finished.")
SAVED_CANDIDATES = _counter(
    "early_stop_saved_candidates_total", "Candidates that were open when a vote was decided early."
)
LOST_CANDIDATES = _counter("lost_candidates_total", "Candidates of peers that died, hung or broke the rules.")

# ---- replication -----------------------------------------------------------------------------------------------------

SYNC_BYTES = _counter(
    "sync_bytes_total", "Bytes of token logs and KV snapshots, sent or received, by reason.", "direction", "reason"
)
SNAPSHOTS_REFUSED = _counter("snapshots_refused_total", "Snapshots that were refused, by reason.", "reason")

# ---- as it is now ----------------------------------------------------------------------------------------------------

QUEUED = _gauge("queued_requests", "Requests that wait for a free sequence.")
SLOTS = _gauge("slots", "Sequences, by state: used or free; and topics whose KV is parked.", "state")
TOPICS = _gauge("topics", "Conversations held.")
UNWRITTEN = _gauge(
    "unwritten_turns", "Turns in memory that wait for a disk that does not take them. 0 is as it should be."
)
PEERS = _gauge("peers", "Other nodes of the mesh, by state.", "state")
DECODE_SPEED = _gauge("decode_tokens_per_second", "Decode speed of one sequence, as last measured.")
INFO = _gauge("node_info", "Always 1; its labels say what this node is.", "node", "model", "backend", "version")


def exposition() -> bytes:
    """Everything, in Prometheus' text format 0.0.4."""
    return prometheus_client.generate_latest(REGISTRY)
