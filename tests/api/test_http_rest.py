"""The other endpoints, who may ask, and the code and line of everything that goes wrong."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from web import OURS, SLOW, Web, asked, web

from node.api.http import Gateway, bind, names
from node.api.http.guard import is_this_machine
from node.api.http.remembered import Kept, Remembered
from node.engine.fake import FakeBackend, FakeSpec
from node.errors import NotFound, PeerUnavailable
from node.types import NodeInfo, Strategy
from node.v1 import types_pb2

CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}


# ---- names of models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("", names.Mode(True)),
        ("conclave", names.Mode(True)),
        ("conclave:fast", names.Mode(True, Strategy.FASTEST)),
        ("conclave:majority-9", names.Mode(True, Strategy.MAJORITY, 9)),
        ("conclave:similarity", names.Mode(True, Strategy.SIMILARITY)),
        ("conclave:7", names.Mode(True, None, 7)),
        ("m", names.Mode(False)),
        ("m:latest", names.Mode(False)),
        ("conclave:latest", names.Mode(True)),
    ],
)
def test_names_carry_the_mode(name: str, mode: names.Mode) -> None:
    assert names.mode(name, "m") == mode


@given(st.one_of(st.text(max_size=30), st.text("conlavefst:-0123456789", max_size=20).map(lambda s: f"conclave:{s}")))
def test_any_other_name_is_not_found(name: str) -> None:
    try:
        found = names.mode(name, "m")
    except NotFound:
        return
    assert found.candidates <= 64
    assert name in ("", "m", "m:latest") or name.startswith("conclave")


def test_what_has_a_tag_by_itself_keeps_it() -> None:
    assert names.mode("m:latest", "m:latest", {"m"}) == names.Mode(False)
    assert names.mode("m:latest", "n", {"m:latest", "m"}) == names.Mode(False, model="m:latest")
    assert names.mode("m:latest", "n", {"m"}) == names.Mode(False, model="m")
    with pytest.raises(NotFound):
        names.mode(":latest", "m")


async def test_what_is_filled_in_is_not_passed_over() -> None:
    async with web() as node:
        found = await node.post(COMPLETIONS, {"model": "fake", "prompt": "a", "suffix": "b"})
        assert (found.status, found.error.startswith("suffix is not known here")) == (400, True)
        asked_again = {"model": "fake:latest", "prompt": "a", "suffix": ""}
        assert (await node.post(COMPLETIONS, asked_again)).status == 200


async def test_models() -> None:
    async with web() as node:
        listed = [m["id"] for m in (await node.get("/v1/models")).json["data"]]
        assert listed[0] == "conclave"
        assert listed[-1] == "fake"
        for name in (*listed, "conclave:majority-9"):
            assert (await node.get(f"/v1/models/{name}")).json["id"] == name
        found = await node.get("/v1/models/gpt-4o")
        assert (found.status, found.json["error"]["code"]) == (404, "model_not_found")


# ---- completions, embeddings -----------------------------------------------------------------------------------------


async def test_completions() -> None:
    async with web(FakeSpec(answers=("and so on",))) as node:
        body = (await node.post(COMPLETIONS, {"model": "fake", "prompt": "once", "max_tokens": 2})).json
        assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "and so")
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["prompt_tokens"] == 1, "no template"
        both = {"model": "fake", "prompt": ["one", "two"], "echo": True, "n": 2}
        body = (await node.post(COMPLETIONS, both)).json
        assert [c["text"] for c in body["choices"]] == ["oneand so on"] * 2 + ["twoand so on"] * 2
        assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
        streamed = (await node.post(COMPLETIONS, both | {"stream": True})).events[:-1]
        for index in range(4):
            text = "".join(c["text"] for e in streamed for c in e["choices"] if c["index"] == index)
            assert text == body["choices"][index]["text"]
        [vote] = (await node.post(COMPLETIONS, {"prompt": "x"})).json["choices"]
        assert vote["text"] == "and so on"
        assert (await node.post(COMPLETIONS, {"model": "fake", "prompt": ["a", [1, 2]]})).status == 200
        found = await node.post(COMPLETIONS, {"model": "fake", "prompt": [10**12]})
        assert (found.status, "none of this model's" in found.error) == (400, True)


async def test_embeddings() -> None:
    async with web() as node:
        body = (await node.post(EMBEDDINGS, {"model": "fake", "input": ["red sky", "blue"]})).json
        vectors = [d["embedding"] for d in body["data"]]
        assert [d["index"] for d in body["data"]] == [0, 1]
        assert sum(x * x for x in vectors[0]) == pytest.approx(1)
        assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        packed = await node.post(EMBEDDINGS, {"model": "conclave", "input": "red sky", "encoding_format": "base64"})
        raw = base64.b64decode(packed.json["data"][0]["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vectors[0])
        for bad, why in (
            ({"input": []}, "send 1 to 256"),
            ({"input": [""]}, "none of them empty"),
            ({"input": ["x"] * 257}, "257 texts"),
            ({"input": "x", "dimensions": 3}, "dimensions cannot be chosen"),
            ({"input": "x " * 9000}, "does not fit"),
        ):
            found = await node.post(EMBEDDINGS, bad)
            assert (found.status, why in found.error) == (400, True), found.error


# ---- responses -------------------------------------------------------------------------------------------------------


async def test_a_response_and_the_one_that_follows() -> None:
    async with web() as node:
        first = (await node.post(RESPONSES, {"model": "fake", "input": "one two", "instructions": "brief"})).json
        assert (first["object"], first["status"], first["error"]) == ("response", "completed", None)
        [message] = first["output"]
        assert message["content"] == [
            {"type": "output_text", "text": "echo: one two", "annotations": [], "logprobs": []}
        ]
        second = {"model": "fake", "input": "three", "previous_response_id": first["id"]}
        usage = (await node.post(RESPONSES, second)).json["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] > 0 or usage["input_tokens"] > 8
        unkept = (await node.post(RESPONSES, {"model": "fake", "input": "x", "store": False})).json
        for id in (unkept["id"], "resp_0"):
            found = await node.post(RESPONSES, {"input": "y", "previous_response_id": id})
            assert (found.status, "not remembered" in found.error) == (404, True)
        cut = (await node.post(RESPONSES, {"model": "fake", "input": "a b c d", "max_output_tokens": 2})).json
        assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        vote = (await node.post(RESPONSES, {"input": "hello"})).json
        assert vote["conclave"]["planned"] == 4


async def test_a_response_as_events() -> None:
    async with web(FakeSpec(answers=("one two three",))) as node:
        found = await node.post(RESPONSES, {"model": "fake", "input": "hi", "stream": True})
        events = found.events
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        named = [line[7:] for line in found.body.decode().splitlines() if line.startswith("event: ")]
        assert named == [e["type"] for e in events]
        assert named == [
            *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
            *["response.output_text.delta"] * 3,
            *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
            "response.completed",
        ]
        text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        assert text == "one two three" == events[-1]["response"]["output"][0]["content"][0]["text"]


async def test_function_calls_of_a_response() -> None:
    async with web(FakeSpec(answers=(f"Let me see. {CALL}",))) as node:
        body = (await node.post(RESPONSES, {"model": "fake", "input": "hi", "tools": [ADD]})).json
        message, call = body["output"]
        assert message["content"][0]["text"].strip() == "Let me see."
        assert (call["type"], call["name"], call["arguments"]) == ("function_call", "add", '{"a": 1}')
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
        more = {"model": "fake", "input": [output], "previous_response_id": body["id"], "tools": [ADD]}
        assert (await node.post(RESPONSES, more)).status == 200
        whole = [{"role": "user", "content": "hi"}, {"type": "reasoning", "summary": []}, call, output]
        assert (await node.post(RESPONSES, {"model": "fake", "input": whole})).status == 200
        events = (await node.post(RESPONSES, {"model": "fake", "input": "hi", "tools": [ADD], "stream": True})).events
        done = [e for e in events if e["type"] == "response.output_item.done"]
        assert [d["item"]["type"] for d in done] == ["function_call", "message"]
        assert {d["output_index"]: d["item"]["type"] for d in done} == {0: "message", 1: "function_call"}
        arguments = [e for e in events if e["type"] == "response.function_call_arguments.done"]
        assert arguments[0]["arguments"] == '{"a": 1}'


def test_what_is_remembered_is_bounded() -> None:
    held = Remembered()
    for i in range(1100):
        held.keep(str(i), Kept([types_pb2.Message(role="user", content="x")]))
    assert held.get("1099")
    with pytest.raises(NotFound):
        held.get("3")
    held.keep("big", Kept([types_pb2.Message(role="user", content="x" * (65 << 20))]))
    assert held.get("big")
    with pytest.raises(NotFound):
        held.get("1099")
    held.forget("big")
    assert held._bytes == 0
    with pytest.raises(NotFound):
        held.forget("big")


async def test_a_response_is_asked_for_again_and_forgotten() -> None:
    async with web(FakeSpec(answers=(f"Let me see. {CALL}",))) as node:
        first = (
            await node.post(RESPONSES, {"model": "fake", "input": "hi", "tools": [ADD], "metadata": {"a": "b"}})
        ).json
        call = first["output"][1]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
        more = {"model": "fake", "input": [output], "previous_response_id": first["id"], "stream": True}
        second = (await node.post(RESPONSES, more)).events[-1]["response"]
        for said in (first, second):
            assert (await node.get(f"{RESPONSES}/{said['id']}")).json == said
        path = f"{RESPONSES}/{second['id']}/input_items"
        found = (await node.get(f"{path}?order=asc")).json
        kinds = [i["type"] for i in found["data"]]
        assert kinds == ["message", "message", "function_call", "function_call_output"]
        question, answer, called, gave = found["data"]
        assert question["content"] == [{"type": "input_text", "text": "hi"}]
        assert answer["role"] == "assistant"
        assert (called["name"], called["call_id"], gave["output"]) == ("add", call["call_id"], "2")
        assert (found["first_id"], found["last_id"], found["has_more"]) == (question["id"], gave["id"], False)
        page = (await node.get(f"{path}?limit=3")).json
        assert ([i["id"] for i in page["data"]], page["has_more"]) == ([gave["id"], called["id"], answer["id"]], True)
        rest = (await node.get(f"{path}?limit=3&after={page['last_id']}")).json
        assert ([i["id"] for i in rest["data"]], rest["has_more"]) == ([question["id"]], False)
        # What was listed is taken as input again.
        again = {"model": "fake", "input": found["data"]}
        assert (await node.post(RESPONSES, again)).status == 200
        for wrong in ("order=up", "limit=0", "limit=101", "limit=x", "after=msg_0"):
            assert (await node.get(f"{path}?{wrong}")).status == 400, wrong
        gone = await node.call("DELETE", f"{RESPONSES}/{first['id']}")
        assert gone.json == {"id": first["id"], "object": "response", "deleted": True}
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
            missing = await node.call(method, f"{RESPONSES}/{first['id']}{tail}")
            assert (missing.status, "is not remembered here" in missing.error) == (404, True)
        found = await node.post(RESPONSES, {"input": "y", "previous_response_id": first["id"]})
        assert found.status == 404
        unkept = (await node.post(RESPONSES, {"model": "fake", "input": "x", "store": False})).json
        assert (await node.get(f"{RESPONSES}/{unkept['id']}")).status == 404


# ---- who may ask -----------------------------------------------------------------------------------------------------


async def test_a_key_where_there_is_one() -> None:
    async with web(keys=("secret", "other")) as node:
        for path in ("/v1/models", "/v1/status", "/metrics", "/v1/chat/completions"):
            for wrong in ({}, {"authorization": "Bearer nope"}, {"authorization": "secret"}, {"x_api_key": "secre"}):
                found = await node.call("GET", path, **wrong)
                assert (found.status, found.json["error"]["code"]) == (401, "invalid_api_key")
                assert found.headers["www-authenticate"] == "Bearer"
        for right in ({"authorization": "Bearer secret"}, {"authorization": "bearer other"}, {"x_api_key": "other"}):
            assert (await node.get("/v1/models", **right)).status == 200
            assert (await node.post(CHAT, asked(), **right)).status == 200
        for path in ("/", "/health", "/page.js", "/page.css"):
            assert (await node.get(path)).status == 200, "which tell nothing of the mesh"
        icon = await node.get("/favicon.ico")
        assert (icon.status, icon.headers["content-type"]) == (200, "image/svg+xml"), "every browser asks for it"
        far = await node.get(
            "/v1/models", origin="https://far.example", host="far.example", authorization="Bearer secret"
        )
        assert (far.status, far.headers["access-control-allow-origin"]) == (200, "https://far.example")


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:7422", True),
        ("[::1]:7422", True),
        ("localhost", True),
        ("app.localhost:80", True),
        ("192.168.1.7:7422", True),
        ("evil.example:7422", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("localhost.evil.example", False),
        ("[::1", False),
    ],
)
def test_hosts_of_this_machine(host: str, ours: bool) -> None:
    assert is_this_machine(host) is ours


async def test_pages_of_other_sites_may_not_ask() -> None:
    async with web() as node:
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "chrome-extension://a"},
            {"host": "evil.example"},
        ):
            found = await node.post(CHAT, asked(), **headers)
            assert found.status == 403
            assert "access-control-allow-origin" not in found.headers
        own = f"http://localhost:{node.port}"
        preflight = await node.call("OPTIONS", CHAT, origin=own, access_control_request_headers="content-type")
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, own)
        assert preflight.headers["access-control-allow-headers"] == "content-type"
        assert (await node.post(CHAT, asked(), origin=own)).status == 200
        for program in ("app://obsidian.md", "tauri://localhost", "vscode-webview://0a1b"):
            assert (await node.get("/v1/models", origin=program)).headers["access-control-allow-origin"] == program


# ---- what goes wrong -------------------------------------------------------------------------------------------------

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}
BAD: list[tuple[Any, int, str]] = [
    (b"{", 400, "the request is not valid"),
    (b"\xff\xfe", 400, "the request is not valid"),
    (b"[" * 100_000, 400, "the request is not valid"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "the request is not valid"),
    ({}, 400, "missing required field `messages`"),
    (asked(temperature="hot"), 400, "Expected `float | null`, got `str` - at `$.temperature`"),
    (asked(temperature=11), 400, "at `$.temperature`"),
    (asked(n=65), 400, "at `$.n`"),
    (asked(seed=2**70), 400, "seed"),
    (asked(logit_bias={"x": 1}), 400, "the number of a token"),
    (asked(logit_bias={"1": 101}), 400, "logit_bias"),
    (asked(top_logprobs=21, logprobs=True), 400, "top_logprobs"),
    (asked(top_logprobs=2), 400, "logprobs"),
    (asked(max_tokens=0), 400, "max_tokens is 0"),
    (asked(stop=["x"] * 17), 400, "at `$.stop`"),
    (asked(stop=[""]), 400, "stop takes at most"),
    (asked(""), 400, "empty prompt"),
    (asked(topic="x" * 300), 400, "topic is 300 bytes"),
    (asked(topic="a\nb"), 400, "control characters"),
    (asked("w " * 9000, model="fake"), 400, "a sequence holds 4096"),
    (asked("w " * 9000, model="fake", stream=True), 400, "a sequence holds 4096"),
    (asked(model="gpt-4o"), 404, "does not exist here"),
    (asked(model="conclave:fats"), 404, "there are conclave"),
    (asked(response_format={"type": "sound"}), 400, "it must be text, json_object or json_schema"),
    (asked(response_format=SCHEMA), 400, "has no schema"),
    (asked(tools=[{"type": "web_search"}]), 400, "only function tools"),
    (asked(tools=[{"type": "function", "function": {}}]), 400, "has no name"),
    (asked(tool_choice="required"), 400, "there are no tools"),
    (asked(tool_choice="maybe"), 400, "tool_choice is 'maybe'"),
    (asked(tool_choice={"type": "function", "function": {"name": "f"}}), 400, "none of the tools"),
    (asked(conclave={"strategy": "guess"}), 400, "strategy 'guess' is unknown"),
    (asked(conclave={"scope": "moon"}), 400, "conclave.scope"),
    (asked(conclave={"early_stop": "x"}), 400, "conclave.early_stop"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "models have no vision on"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        "models have no hearing on",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
        400,
        "models have no reader of files",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role is 'robot'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "the last message is from 'assistant'"),
    ({"messages": "hi"}, 400, "Expected `array`, got `str`"),
]


async def test_every_error_has_its_code_and_one_line() -> None:
    async with web() as node:
        for body, status, why in BAD:
            found = await node.post(CHAT, body)
            assert found.status == status, (body if len(str(body)) < 200 else "", found.body)
            assert why in found.error
            assert set(found.json["error"]) == {"message", "type", "param", "code"}
            assert "\n" not in found.error
        found = await node.post(CHAT, b"x" * (17 << 20))
        assert (found.status, "longer than 16 MiB" in found.error) == (400, True)
        long = await node.post(CHAT, asked("w " * 9000, model="fake"))
        assert long.json["error"]["code"] == "context_length_exceeded"
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405)):
            found = await node.call(method, path)
            assert (found.status, "/openapi.json" in found.error) == (status, True)


async def test_a_defect_is_no_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with web() as node:
        monkeypatch.setattr(node.engine, "run", lambda job: 1 // 0)
        found = await node.post(CHAT, asked(model="fake"))
        assert (found.status, "internal error: ZeroDivisionError" in found.error) == (500, True)
        assert "Traceback" not in found.body.decode()


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's algorithm on"


# ---- looking ---------------------------------------------------------------------------------------------------------


async def test_health_metrics_status_and_the_description() -> None:
    async with web() as node:
        await node.post(CHAT, asked(topic="t"))
        assert (await node.get("/health")).json == {"status": "ok"}
        status = (await node.get("/v1/status")).json
        assert (status["nodes"][0]["name"], status["slots"]["free"], status["topics"][0]["topic"]) == ("me", 16, "t")
        held = (await node.get("/v1/topics/t")).json
        assert [m["role"] for m in held["messages"]] == ["user", "assistant"]
        assert (held["messages"][0]["content"], held["info"]["version"]["turn"]) == ("hi", "1")
        assert (await node.get("/v1/topics/u")).status == 404
        assert (await node.call("DELETE", "/v1/topics/u")).status == 404
        await node.post(CHAT, asked(topic="a/b c"))
        gone = await node.call("DELETE", "/v1/topics/a%2Fb%20c")
        assert gone.json == {"id": "a/b c", "object": "topic", "deleted": True, "nodes": [OURS]}
        assert [(await node.get(f"/v1/topics/{name}")).status for name in ("a%2Fb%20c", "t")] == [404, 200]
        found = await node.get("/metrics")
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {f.name: f for f in text_string_to_metric_families(found.body.decode())}
        slots = {s.labels["state"]: s.value for s in families["conclave_slots"].samples}
        assert slots["free"] == 16
        assert families["conclave_topics"].samples[0].value == 1
        assert families["conclave_unwritten_turns"].samples[0].value == 0
        labels = families["conclave_node_info"].samples[0].labels
        assert (labels["model"], labels["version"]) == ("fake", "1.2.3")
        described = (await node.get("/openapi.json")).json
        assert described["openapi"] == "3.1.0"
        text = json.dumps(described)
        for ref in {r.split('"')[0] for r in text.split("#/components/schemas/")[1:]}:
            assert ref in described["components"]["schemas"]


async def test_while_a_node_starts_it_says_when_to_try_again() -> None:
    listener = bind("127.0.0.1", 0)
    gateway = Gateway(listener, ("secret",))
    await gateway.start()
    node = Web(listener.getsockname()[1], None, None, gateway)  # type: ignore[arg-type]
    try:
        health = await node.get("/health")
        assert (health.status, health.json, health.headers["retry-after"]) == (503, {"status": "starting"}, "1")
        found = await node.post(CHAT, asked(), authorization="Bearer secret")
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert (found.json["error"]["type"], found.error[:21]) == ("unavailable_error", "the node is starting:")
        assert (await node.post(CHAT, asked())).status == 401, "what is locked is locked from the first moment on"
    finally:
        await gateway.stop()
        await gateway.stop()


class Gone:
    """A peer that is lost as soon as it is asked."""

    def __init__(self, id: str, fingerprint: str) -> None:
        self.id = id
        self.info = NodeInfo(id, "127.0.0.1:1", fingerprint=fingerprint, free_sequences=16)

    async def poll(self, *_: object, **__: object) -> AsyncGenerator[object, None]:
        raise PeerUnavailable("nobody listens there")
        yield


async def test_without_a_quorum_or_an_engine_it_is_503_and_may_be_tried_again() -> None:
    fingerprint = FakeBackend(FakeSpec()).info.fingerprint
    async with web(peers=(Gone("b" * 16, fingerprint), Gone("c" * 16, fingerprint)), strict_quorum=True) as node:
        for stream in (False, True):
            found = await node.post(CHAT, asked(conclave={"candidates": 3}, stream=stream))
            assert (found.status, found.headers["retry-after"], found.json["error"]["type"]) == (
                503,
                "1",
                "unavailable_error",
            )
            assert " of 3 candidates finished, too few" in found.error
        await node.engine.close()
        found = await node.post(CHAT, asked(model="fake"))
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert "the engine is not running" in found.error


async def test_a_stop_ends_what_runs() -> None:
    async with web(SLOW) as node:
        conversation = await node.open("POST", CHAT, asked(model="fake", stream=True, max_tokens=4000))
        await conversation.event()
        await node.gateway.stop()
        await node.free()
        await conversation.close()


async def test_what_a_model_reads() -> None:
    async with web() as node:
        text = "What is 12 + 30 ?"
        tokens = (await node.post("/tokenize", {"content": text})).json["tokens"]
        assert len(tokens) > 5
        assert (await node.post("/detokenize", {"tokens": tokens})).json == {"content": text}
        pieces = (await node.post("/tokenize", {"content": text, "with_pieces": True, "add_special": True})).json
        assert [p["id"] for p in pieces["tokens"]] == tokens
        assert "".join(p["piece"] for p in pieces["tokens"]) == text
        rendered = (await node.post("/apply-template", asked("hi"))).json
        assert rendered == {"prompt": "<user>\nhi\n</user>\n<assistant>\n"}
        for path, body in (
            ("/tokenize", {"content": "x", "parse_special": False}),
            ("/tokenize", {}),
            ("/detokenize", {"tokens": [10**12]}),
            ("/detokenize", {"tokens": [-5]}),
            ("/apply-template", asked("hi", add_generation_prompt=False)),
            ("/apply-template", {"messages": []}),
        ):
            assert (await node.post(path, body)).status == 400, (path, body)
