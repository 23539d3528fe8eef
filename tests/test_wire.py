"""The wire: what goes out comes back, and what makes no sense is refused with a line that names it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import errors, wire
from node.core import consensus
from node.errors import ConclaveError, InvalidRequest
from node.types import (
    Ballot,
    Candidate,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    Message,
    NodeInfo,
    NodeState,
    Outcome,
    SamplingParams,
    Scope,
    Strategy,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
    Version,
)
from node.v1 import generate_pb2, types_pb2, vote_pb2

# ---- round trips -----------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", codec="utf-8"), min_size=1, max_size=20)
TEXTS = st.text(max_size=20)
CALLS = st.builds(ToolCall, TEXTS, TEXTS, TEXTS)
TALK = st.builds(Message, st.sampled_from(["system", "assistant", "tool"]), TEXTS, st.tuples(CALLS), TEXTS)
MESSAGES = st.tuples(TALK, TALK, st.builds(Message, st.just("user"), TEXTS.filter(str.strip)))
UNIT = st.integers(1, 1000).map(lambda n: n / 1000)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=UNIT,
    top_p=UNIT,
    top_k=st.integers(0, 1_000_000),
    min_p=UNIT,
    repeat_penalty=st.integers(1, 1000).map(lambda n: n / 100),
    seed=st.integers(0, 2**64 - 1),
    stop=st.lists(NAMES, max_size=16).map(tuple),
    json_schema=st.sampled_from(["", '{"type": "object"}']),
    presence_penalty=st.integers(-200, 200).map(lambda n: n / 100),
    frequency_penalty=st.integers(-200, 200).map(lambda n: n / 100),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.integers(-100, 100).map(float), max_size=9).map(
        lambda d: tuple(sorted(d.items()))
    ),
    logprobs=st.just(True),
    top_logprobs=st.integers(0, 20),
    think=st.sampled_from([None, False, True]),
)
TOOLS = st.lists(
    st.builds(Tool, NAMES, TEXTS, st.sampled_from(["{}", '{"a": [1]}'])), max_size=3, unique_by=lambda t: t.name
).map(tuple)
REQUESTS = st.builds(
    GenerateRequest,
    messages=MESSAGES,
    topic=NAMES,
    append=st.booleans(),
    candidates=st.integers(1, 64),
    strategy=st.sampled_from(Strategy),
    scope=st.sampled_from(Scope),
    params=PARAMS,
    tools=TOOLS,
    model=NAMES,
    request_id=NAMES,
)


@given(REQUESTS)
def test_a_request_comes_back(request: GenerateRequest) -> None:
    sent = wire.request_pb(request).SerializeToString()
    assert wire.generate_request(generate_pb2.GenerateRequest.FromString(sent), wire.Defaults()) == request


LOGPROBS = st.builds(TokenLogprob, TEXTS, st.floats(-9999, 0), st.binary(max_size=4), st.integers(0, 2**32 - 1))
CANDIDATES = st.builds(
    Candidate,
    id=st.integers(1, 2**32 - 1),
    node=TEXTS,
    text=TEXTS,
    tokens=st.integers(0, 2**32 - 1),
    mean_logprob=st.floats(-1e300, 0),
    finish_reason=st.sampled_from(FinishReason),
    latency_ms=st.floats(0, 1e300),
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    logprobs=st.lists(st.builds(replace, LOGPROBS, top=st.tuples(LOGPROBS)), max_size=2).map(tuple),
)


@given(CANDIDATES)
def test_a_candidate_comes_back(candidate: Candidate) -> None:
    sent = wire.candidate_pb(candidate, "key").SerializeToString()
    assert wire.candidate(types_pb2.Candidate.FromString(sent), candidate.node) == candidate


@given(
    st.lists(
        st.builds(Ballot, CANDIDATES, TEXTS, st.integers(1, 2**40).map(lambda n: n / 2**40), st.floats(0, 1)),
        max_size=6,
        unique_by=lambda b: b.candidate.id,
    )
)
def test_a_tally_comes_back(ballots: list[Ballot]) -> None:
    counted = consensus.tally(ballots, Strategy.CONFIDENCE, len(ballots))
    sent = types_pb2.Tally.FromString(wire.tally_pb(counted).SerializeToString())
    assert wire.tally(sent, {b.candidate.id: b for b in ballots}) == counted
    assert consensus.check(wire.tally(sent, {b.candidate.id: b for b in ballots}), ballots) is None


@given(st.builds(Version, st.integers(0, 2**53), st.integers(0, 2**53), NAMES))
def test_a_version_comes_back(version: Version) -> None:
    assert wire.version(wire.version_pb(version)) == version


@given(
    st.builds(
        NodeInfo,
        id=NAMES,
        address=NAMES,
        state=st.sampled_from(NodeState),
        load=st.floats(0, 1),
        sequences=st.integers(0, 256),
        free_sequences=st.integers(0, 256),
        decode_tokens_per_s=st.floats(0, 1e6),
        incarnation=st.integers(0, 2**64 - 1),
    )
)
def test_a_node_comes_back(node: NodeInfo) -> None:
    if node.id.isprintable() and node.address.isprintable():
        assert wire.node_info(wire.node_info_pb(node)) == node


def test_a_result_goes_out_whole() -> None:
    candidate = Candidate(
        2, "n", "42", 3, -0.5, FinishReason.STOP, 7.0, (ToolCall("add", "{}", "call_0"),), stopped_by="x"
    )
    ballot = Ballot(candidate, "42", 1.0, 0.5)
    counted = consensus.tally([ballot], Strategy.MAJORITY, 2)
    outcome = Outcome(
        Strategy.MAJORITY, 2, 1.0, 0.5, counted.clusters, (3,), True, 2, 1, True, False, (), ("a warning",)
    )
    result = GenerateResult(
        text="42",
        finish_reason=FinishReason.TOOL_CALLS,
        topic="t",
        version=Version(1, 2, "n"),
        outcome=outcome,
        candidates=(candidate,),
        answers={2: "42"},
        usage=Usage(1, 2, 3, 4),
        timings=Timings(1.0, 2.0, 3.0, 4.0),
        request_id="r",
        tool_calls=candidate.tool_calls,
    )
    pb = wire.response_pb(result)
    assert (pb.text, pb.finish_reason, pb.topic, pb.version.turn, pb.request_id) == ("42", "tool_calls", "t", 2, "r")
    assert (pb.outcome.winner, pb.outcome.clusters[0].medoid, list(pb.outcome.clusters[0].members)) == (2, "42", [2])
    assert (pb.outcome.stopped_early, pb.outcome.disagreement, pb.outcome.quorum) == (True, True, False)
    assert list(pb.outcome.warnings) == ["a warning"]
    assert (pb.candidates[0].answer, pb.candidates[0].tool_calls[0].name) == ("42", "add")
    usage, timings = pb.usage, pb.timings
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.candidate_tokens) == (1, 2, 3, 4)
    assert (timings.queue_ms, timings.prefill_ms, timings.first_token_ms, timings.total_ms) == (1, 2, 3, 4)


def test_a_key_that_utf8_cannot_say_is_sent_all_the_same() -> None:
    candidate = Candidate(1, "n", "x", 1, 0.0, FinishReason.STOP, 1.0)
    ballot = Ballot(candidate, "\ud800", 1.0, 0.5)
    assert wire.ballot_pb(ballot).key == wire.candidate_pb(candidate, "\ud800").answer == "?"
    assert wire.tally_pb(consensus.tally([ballot], Strategy.MAJORITY, 1)).clusters[0].key == "?"


# ---- requests that are refused ---------------------------------------------------------------------------------------


def good() -> generate_pb2.GenerateRequest:
    return generate_pb2.GenerateRequest(messages=[types_pb2.Message(role="user", content="hi")])


def test_what_is_left_out_takes_the_defaults() -> None:
    params = SamplingParams(max_tokens=7, temperature=0.1, top_p=0.2, top_k=3, min_p=0.4, repeat_penalty=1.5, seed=6)
    defaults = wire.Defaults(5, Strategy.QUALITY, params)
    assert wire.generate_request(good(), defaults) == GenerateRequest(
        (Message("user", "hi"),), candidates=5, strategy=Strategy.QUALITY, params=params
    )
    pb = good()
    pb.params.temperature = pb.params.top_k = pb.params.min_p = 0  # said to be 0, and not left out
    said = wire.generate_request(pb, defaults).params
    assert (said.temperature, said.top_k, said.min_p, said.top_p) == (0, 0, 0, 0.2)


def test_a_decimal_is_what_was_typed() -> None:
    pb = good()
    pb.params.temperature, pb.params.repeat_penalty, pb.params.top_p = 0.8, 0.01, 0.95
    said = wire.generate_request(pb, wire.Defaults()).params
    assert (said.temperature, said.repeat_penalty, said.top_p) == (0.8, 0.01, 0.95)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields]}


def user() -> dict[str, Any]:
    return {"role": "user", "content": "hi"}


def number(field: str, value: float) -> dict[str, Any]:
    return {"params": {field: value}}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages is empty"),
    ({"messages": [user()] * 4097}, "4097 messages: at most 4096"),
    (message(role="user"), r"messages\[0\] is an empty prompt"),
    (message(role="user", content=" \n\t"), r"messages\[0\] is an empty prompt"),
    (message(role="", content="x"), r"messages\[0\].role is ''"),
    (message(role="x" * 100_000, content="x"), r"messages\[0\].role is 'xxx.*…': it must be one of system"),
    (message(role="assistant", content="x"), "the last message is from 'assistant'"),
    (message(role="system", content="x"), "the last message is from 'system'"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}] * 129}, user()]}, r"messages\[0\] has 129 tool calls"),
    ({"candidates": -1}, "candidates is -1"),
    ({"candidates": 65}, "candidates is 65: it must be 1 to 64"),
    ({"append": True}, "append needs a topic"),
    ({"strategy": "judge"}, "strategy 'judge' is unknown: it must be one of auto, majority"),
    ({"strategy": "x" * 100_000}, "strategy 'xxx.*…' is unknown"),
    ({"scope": 7}, "scope is 7"),
    ({"topic": "a\nb"}, "topic 'a.*' has control characters"),
    ({"topic": "ü" * 129}, "topic is 258 bytes long: at most 256"),
    ({"model": "\x7f"}, "model .* has control characters"),
    ({"request_id": "x" * 257}, "request_id is 257 bytes"),
    ({"tools": [{}]}, r"tools\[0\] has no name"),
    ({"tools": [{"name": "a"}, {"name": "a"}]}, r"tools\[1\].name is 'a', which another tool has"),
    ({"tools": [{"name": "x" * 257}]}, r"tools\[0\].name is 257 bytes"),
    ({"tools": [{"name": str(i)} for i in range(129)]}, "129 tools: at most 128"),
    ({"tools": [{"name": "a", "parameters": "{"}]}, r"tools\[0\].parameters is not JSON"),
    ({"tools": [{"name": "a", "parameters": "[" * 100_000}]}, r"tools\[0\].parameters is not JSON"),
    ({"tools": [{"name": "a", "parameters": "[]"}]}, r"tools\[0\].parameters must be a JSON object"),
    (number("max_tokens", -1), "max_tokens is -1"),
    *[(number(f, v), f"{f} is {v:g}") for f in ("temperature", "min_p") for v in (-0.1, 10.1, math.nan, math.inf)],
    *[(number("top_p", v), f"top_p is {v:g}") for v in (0.0, -1.0, 1.1, math.nan, -math.inf)],
    *[(number("repeat_penalty", v), f"repeat_penalty is {v:g}") for v in (0.0, -1.0, 11.0, math.nan)],
    *[(number("top_k", v), "top_k is ") for v in (-1, 1_000_001)],
    *[(number(f"{f}_penalty", v), f"{f}_penalty is") for f in ("presence", "frequency") for v in (-2.1, 3.0, math.nan)],
    *[(number("top_logprobs", v), f"top_logprobs is {v}: it must be 0 to 20") for v in (-1, 21)],
    (number("top_logprobs", 3), "top_logprobs is 3, but logprobs is false"),
    ({"params": {"logit_bias": {7: 101.0}}}, "logit_bias of token 7 is 101: it must be -100 to 100"),
    ({"params": {"logit_bias": {7: math.nan}}}, "logit_bias of token 7 is nan"),
    ({"params": {"logit_bias": dict.fromkeys(range(1025), 1.0)}}, "logit_bias has 1025 tokens: at most 1024"),
    ({"params": {"ignore_eos": True, "json_schema": "{}"}}, "ignore_eos excludes json_schema and grammar"),
    ({"params": {"ignore_eos": True, "grammar": "root ::= x"}}, "ignore_eos excludes json_schema and grammar"),
    ({"params": {"stop": ["x"] * 17}}, "stop takes at most 16"),
    ({"params": {"stop": [""]}}, "stop takes at most 16 texts of 1 to 256"),
    ({"params": {"stop": ["x" * 257]}}, "stop takes at most 16 texts of 1 to 256"),
    ({"params": {"json_schema": "{}", "grammar": "root ::= x"}}, "json_schema and grammar exclude each other"),
    ({"params": {"json_schema": "true"}}, "json_schema must be a JSON object"),
    ({"params": {"json_schema": "{"}}, "json_schema is not JSON"),
    ({"params": {"json_schema": json.dumps({"x": "x" * 70_000})}}, "json_schema is 700.. bytes long: at most 65536"),
    ({"params": {"grammar": "x" * 70_000}}, "grammar is 70000 bytes long"),
]


@pytest.mark.parametrize(("change", "line"), BAD, ids=range(len(BAD)))
def test_a_request_that_makes_no_sense_names_the_field(change: dict[str, Any], line: str) -> None:
    pb = generate_pb2.GenerateRequest(**({"messages": [user()]} | change))
    with pytest.raises(InvalidRequest, match=line) as caught:
        wire.generate_request(pb, wire.Defaults())
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def poll(**change: Any) -> vote_pb2.PollRequest:
    fields: dict[str, Any] = {"messages": [user()], "candidates": [4, 2], "strategy": "majority", "request_id": "r"}
    return vote_pb2.PollRequest(**(fields | change))


def test_a_poll() -> None:
    asked = wire.poll_request(poll())
    assert (asked.candidates, asked.strategy, asked.scope, asked.request_id) == (2, Strategy.MAJORITY, Scope.LOCAL, "r")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"candidates": []}, "poll asks for 0 candidates"),
        ({"candidates": [0]}, "with distinct ids from 1"),
        ({"candidates": [1, 1]}, "with distinct ids from 1"),
        ({"candidates": range(1, 66)}, "poll asks for 65 candidates"),
        ({"strategy": ""}, "strategy is auto"),
        ({"strategy": "auto"}, "strategy is auto"),
        ({"strategy": "x"}, "strategy 'x' is unknown"),
        ({"messages": []}, "messages is empty"),
        ({"request_id": "\n"}, "request_id"),
        ({"params": {"temperature": math.nan}}, "temperature is nan"),
    ],
)
def test_a_poll_that_makes_no_sense(change: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidRequest, match=line):
        wire.poll_request(poll(**change))


def test_a_conversation_that_was_answered() -> None:
    said = [types_pb2.Message(role="user", content="a"), types_pb2.Message(role="assistant", content="b")]
    assert [m.content for m in wire.answered(said)] == ["a", "b"]
    for bad in ([], said[:1], [types_pb2.Message(role="root")], said * 2049):
        with pytest.raises(InvalidRequest):
            wire.answered(bad)


@pytest.mark.parametrize("field", ["epoch", "turn"])
def test_a_version_that_nothing_could_follow(field: str) -> None:
    with pytest.raises(InvalidRequest, match="out of range"):
        wire.version(types_pb2.Version(**{field: 2**64 - 1}))


# ---- what peers say --------------------------------------------------------------------------------------------------


@given(
    st.builds(
        types_pb2.Candidate,
        id=st.integers(0, 2**32 - 1),
        mean_logprob=st.floats(),
        latency_ms=st.floats(),
        finish_reason=TEXTS,
    )
)
def test_numbers_of_a_peers_candidate_are_bounded(pb: types_pb2.Candidate) -> None:
    got = wire.candidate(pb, "n")
    assert math.isfinite(got.mean_logprob)
    assert got.mean_logprob <= 0
    assert math.isfinite(got.latency_ms)
    assert got.latency_ms >= 0


@given(st.floats())
def test_a_peers_log_probabilities_are_bounded(logprob: float) -> None:
    alike = types_pb2.TopLogprob(logprob=logprob)
    pb = types_pb2.Candidate(logprobs=[types_pb2.TokenLogprob(logprob=logprob, top_logprobs=[alike])])
    [got] = wire.candidate(pb, "n").logprobs
    assert got.logprob == got.top[0].logprob == (logprob if -math.inf < logprob <= 0 else -9999.0)


@given(
    st.builds(
        types_pb2.NodeInfo,
        id=st.text(max_size=100),
        name=st.text(max_size=100),
        load=st.floats(),
        decode_tokens_per_s=st.floats(),
        round_trip_ms=st.floats(),
        sequences=st.integers(0, 2**32 - 1),
        free_sequences=st.integers(0, 2**32 - 1),
        state=TEXTS,
    )
)
def test_a_peers_word_on_itself_is_bounded(pb: types_pb2.NodeInfo) -> None:
    got = wire.node_info(pb)
    assert 0 <= got.load <= 1
    assert 0 <= got.decode_tokens_per_s <= 1e6
    assert 0 <= got.round_trip_ms <= 1e6
    assert max(got.sequences, got.free_sequences) <= 256
    assert max(len(got.id), len(got.name)) <= 64
    assert (got.id + got.name).isprintable(), "nothing a terminal would obey"


def test_a_tally_of_ballots_that_never_came() -> None:
    pb = types_pb2.Tally(strategy="majority", clusters=[types_pb2.Cluster(medoid_id=3, members=[3])])
    with pytest.raises(InvalidRequest, match="candidate 3, whose ballot never came"):
        wire.tally(pb, {})
    with pytest.raises(InvalidRequest, match="unknown"):
        wire.tally(types_pb2.Tally(strategy="x"), {})


# ---- errors ----------------------------------------------------------------------------------------------------------

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ConclaveError)]


def failed(code: grpc.StatusCode, detail: str | None) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), detail)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_as_its_kind(kind: Callable[[str], ConclaveError]) -> None:
    error = kind("what to do")
    back = wire.error_from_rpc(failed(wire.status_code(error), error.message))
    assert (back.code, back.message) == (error.code, "what to do")


def test_codes_outside_the_taxonomy() -> None:
    assert isinstance(wire.error_from_rpc(failed(grpc.StatusCode.DATA_LOSS, "x")), errors.CorruptSnapshot)
    assert isinstance(wire.error_from_rpc(failed(grpc.StatusCode.ABORTED, "x")), errors.BackendError)
    gone = wire.error_from_rpc(failed(grpc.StatusCode.CANCELLED, "x"))
    assert isinstance(gone, errors.PeerUnavailable)
    assert "cancelled: x" in gone.message
    assert wire.error_from_rpc(failed(grpc.StatusCode.INTERNAL, None)).message == "INTERNAL"
    assert isinstance(wire.error_from_rpc(grpc.RpcError("x")), errors.BackendError)


def test_another_nodes_words_are_one_bounded_line() -> None:
    message = wire.error_from_rpc(failed(grpc.StatusCode.INTERNAL, "a\x1b[31m\nb" + "x" * 100_000)).message
    assert message.startswith("a [31m bxx")
    assert len(message) == wire.MAX_DETAIL
