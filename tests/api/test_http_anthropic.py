"""Anthropic's API: what its requests mean, the events of its streams, its errors. Its client is tests/e2e/clients'."""

from __future__ import annotations

import json
from typing import Any

import pytest
from web import SLOW, Answer, web

from node.api.http.anthropic import asked, schema
from node.engine.fake import FakeSpec
from node.errors import InvalidRequest

ASK = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
Block = schema.Block


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "max_tokens": 64, "messages": ASK} | fields


def events(answer: Answer) -> list[Any]:
    """The data of a stream's events, each under its own name."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in answer.body.decode().strip().split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_message_whole_and_as_events() -> None:
    async with web() as node:
        said = (await node.post("/v1/messages", body(), x_api_key="any", anthropic_version="2023-06-01")).json
        assert said["content"] == [{"type": "text", "text": "echo: hi"}]
        assert (said["type"], said["role"], said["model"]) == ("message", "assistant", "fake")
        assert (said["stop_reason"], said["stop_sequence"]) == ("end_turn", None)
        used = said["usage"]
        assert (used["input_tokens"] > 0, used["output_tokens"]) == (True, 3)
        assert "conclave" not in said
        found = events(await node.post("/v1/messages", body(stream=True)))
        assert [e["type"] for e in found] == [
            *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
            *("content_block_stop", "message_delta", "message_stop"),
        ]
        assert found[0]["message"]["content"] == []
        assert found[0]["message"]["usage"]["input_tokens"] == used["input_tokens"] + used["cache_read_input_tokens"]
        assert [e["delta"] for e in found[2:4]] == [{"type": "text_delta", "text": t} for t in ("echo:", " hi")]
        assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
        after = found[-2]["usage"]
        assert after["input_tokens"] + after["cache_read_input_tokens"] == used["input_tokens"]
        turn = [{"role": "assistant", "content": "echo: hi"}, {"role": "user", "content": "more"}]
        begun, later = [body(topic="t", messages=m) for m in (ASK, ASK + turn)]
        first, second = [(await node.post("/v1/messages", b)).json["usage"] for b in (begun, later)]
        assert second["cache_read_input_tokens"] > first["input_tokens"], "the conversation is held"
        cut = (await node.post("/v1/messages", body(max_tokens=1))).json
        assert cut["stop_reason"] == "max_tokens"


async def test_a_name_carries_how_it_is_answered() -> None:
    async with web() as node:
        vote = (await node.post("/v1/messages", body(model="conclave:majority-5"))).json
        assert (vote["conclave"]["planned"], vote["content"][0]["text"]) == (5, "echo: hi")
        found = events(await node.post("/v1/messages", body(model="conclave", stream=True, topic="t")))
        assert found[-2]["conclave"]["topic"] == "t"
        assert [m.content for m in node.store.get("t").messages] == ["hi", "echo: hi"]
        told = events(await node.post("/v1/messages", body(model="conclave", stream=True, conclave={"events": True})))
        assert {e["conclave"]["event"] for e in told if e["type"] == "conclave"} == {"plan", "token", "candidate"}
        missing = await node.post("/v1/messages", body(model="claude-opus"))
        assert (missing.status, missing.json["type"]) == (404, "error")
        assert missing.json["error"]["type"] == "not_found_error"


async def test_tools_are_called_and_their_results_understood() -> None:
    async with web(FakeSpec(answers=(f"Let me see. {CALL}",))) as node:
        said = (await node.post("/v1/messages", body(tools=[ADD]))).json
        text, call = said["content"]
        assert text == {"type": "text", "text": "Let me see."}
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "add", {"a": 1})
        assert said["stop_reason"] == "tool_use"
        found = events(await node.post("/v1/messages", body(tools=[ADD], stream=True)))
        begun = [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"]
        ended = [e["index"] for e in found if e["type"] == "content_block_stop"]
        pieces = [e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
        assert (begun, ended, json.loads("".join(pieces))) == (["text", "tool_use"], [0, 1], {"a": 1})
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "2"}]}
        after = [*ASK, {"role": "assistant", "content": [text, call]}, {"role": "user", "content": [result]}]
        assert (await node.post("/v1/messages", body(tools=[ADD], messages=after))).status == 200


async def test_thoughts_are_blocks_of_their_own() -> None:
    async with web(FakeSpec(answers=("<think>\nHm, 42 .\n</think>\n\nIt is 42.",))) as node:
        said = (await node.post("/v1/messages", body())).json
        assert [b.get("thinking") or b.get("text") for b in said["content"]] == ["Hm, 42 .", "It is 42."]
        found = events(await node.post("/v1/messages", body(stream=True)))
        assert [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"] == ["thinking", "text"]
        deltas = [e["delta"] for e in found if e["type"] == "content_block_delta"]
        assert "".join(d.get("thinking", "") for d in deltas) == "Hm, 42 ."
        assert "".join(d.get("text", "") for d in deltas) == "It is 42."


def test_blocks_as_messages() -> None:
    made = asked.chat(
        schema.MessagesRequest(
            system=[Block(type="text", text="Be"), Block(type="text", text="brief.")],
            messages=[
                schema.Message("user", "hi"),
                schema.Message(
                    "assistant",
                    [
                        Block(type="thinking", thinking="hm"),
                        Block(type="redacted_thinking"),
                        Block(type="text", text="so"),
                        Block(type="tool_use", id="a", name="add", input={"a": 1}),
                        Block(type="tool_use", id="b", name="add"),
                    ],
                ),
                schema.Message(
                    "user",
                    [
                        Block(type="tool_result", tool_use_id="a", content="1"),
                        Block(type="tool_result", tool_use_id="b"),
                        Block(type="text", text="and now?"),
                    ],
                ),
            ],
            tools=[schema.Tool(name="add", type="custom")],
            tool_choice=schema.Choice(type="tool", name="add", disable_parallel_tool_use=True),
            max_tokens=7,
            stop_sequences=["x"],
        )
    )
    assert [(m.role, m.content, m.tool_call_id) for m in made.messages] == [
        ("system", "Be\nbrief.", None),
        ("user", "hi", None),
        ("assistant", "so", None),
        ("tool", "1", "a"),
        ("tool", "", "b"),
        ("user", "and now?", None),
    ]
    assistant = made.messages[2]
    assert assistant.reasoning_content == "hm"
    assert [(c.id, c.function.arguments) for c in assistant.tool_calls or ()] == [("a", '{"a": 1}'), ("b", "{}")]
    assert (made.max_tokens, made.stop, made.parallel_tool_calls) == (7, ["x"], False)


def test_a_system_message_among_others_is_the_users() -> None:
    said = [schema.Message("user", "hi"), schema.Message("system", "be brief"), schema.Message("assistant", "so")]
    said += [schema.Message("system", [Block(type="text", text="now?")])]
    made = asked.chat(schema.MessagesRequest(messages=said)).messages
    assert [(m.role, m.content) for m in made] == [("user", "hi\n\nbe brief"), ("assistant", "so"), ("user", "now?")]


@pytest.mark.parametrize(("kind", "meant"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_which_tool_must_be_called(kind: str, meant: str) -> None:
    request = schema.MessagesRequest(messages=[], tool_choice=schema.Choice(type=kind))
    assert asked.chat(request).tool_choice == meant


def test_what_is_no_choice() -> None:
    with pytest.raises(InvalidRequest, match="must be auto, any, none or tool"):
        asked.chat(schema.MessagesRequest(messages=[], tool_choice=schema.Choice(type="some")))


async def test_tokens_are_counted() -> None:
    async with web() as node:
        used = (await node.post("/v1/messages", body(system="Be brief.", tools=[ADD]))).json["usage"]
        count = {k: v for k, v in body(system="Be brief.", tools=[ADD]).items() if k != "max_tokens"}
        found = await node.post("/v1/messages/count_tokens", count)
        assert found.json == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}
        assert (await node.post("/v1/messages/count_tokens", count | {"model": "claude-opus"})).status == 404
        assert (await node.post("/v1/messages/count_tokens", count | {"messages": []})).status == 400


async def test_errors_are_anthropics() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    hosted = {"type": "web_search_20250305", "name": "web_search"}
    async with web() as node:
        for more, said in (
            ({"temperature": 99}, "$.temperature"),
            ({"messages": [{"role": "user", "content": [image]}]}, "messages[0].content[0] has a part of type 'image'"),
            ({"messages": [{"role": "nobody", "content": "x"}]}, "nobody"),
            ({"tools": [hosted]}, "tools[0].type is 'web_search_20250305'"),
            ({"max_tokens": 0}, "max_tokens is 0"),
        ):
            found = await node.post("/v1/messages", body(**more))
            assert (found.status, found.json["type"], set(found.json["error"])) == (400, "error", {"type", "message"})
            assert found.json["error"]["type"] == "invalid_request_error"
            assert said in found.error, found.body
        too_long = await node.post("/v1/messages", body(messages=[{"role": "user", "content": "w " * 5000}]))
        assert (too_long.status, "a sequence holds" in too_long.error) == (400, True)
    async with web(keys=("secret",)) as node:
        assert (await node.post("/v1/messages", body(), x_api_key="secret")).status == 200
        refused = await node.post("/v1/messages", body(), x_api_key="wrong")
        assert (refused.status, refused.json["type"]) == (401, "error")
        assert refused.json["error"]["type"] == "authentication_error"
    async with web(FakeSpec(answers=(" ".join("w" * 500),), fail_after=200)) as node:
        broken = events(await node.post("/v1/messages", body(stream=True, max_tokens=500)))
        assert (broken[-1]["type"], broken[-1]["error"]["type"]) == ("error", "api_error")


async def test_the_models_are_listed_for_its_clients_too() -> None:
    async with web() as node:
        listed = (await node.get("/v1/models")).json
        assert (listed["has_more"], listed["last_id"]) == (False, "fake")
        assert {(m["type"], m["display_name"] == m["id"]) for m in listed["data"]} == {("model", True)}


async def test_a_client_that_leaves_stops_its_candidate() -> None:
    async with web(SLOW) as node:
        conversation = await node.open("POST", "/v1/messages", body(stream=True, max_tokens=10_000))
        await conversation.event()
        await node.busy()
        await conversation.close()
        await node.free()


async def test_the_stop_sequence_that_ended_an_answer_is_told() -> None:
    """Also of a vote, and of a stream; a stop that was not met is none."""
    async with web(FakeSpec(answers=("one two three",))) as node:
        for model in ("fake", "conclave:majority-3"):
            asked = body(model=model, stop_sequences=["nine", " three"])
            said = (await node.post("/v1/messages", asked)).json
            assert said["content"] == [{"type": "text", "text": "one two"}]
            assert (said["stop_reason"], said["stop_sequence"]) == ("stop_sequence", " three")
            found = events(await node.post("/v1/messages", asked | {"stream": True}))
            assert found[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " three"}
        said = (await node.post("/v1/messages", body(stop_sequences=["nine"]))).json
        assert (said["stop_reason"], said["stop_sequence"]) == ("end_turn", None)


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        ([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}], "vision"),
        ([{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}], "vision"),
        ([{"type": "document", "source": {"type": "text", "data": "x"}}], "reader of files"),
        ([{"type": "search_result"}], "way to read it"),
    ],
)
async def test_what_a_model_cannot_take_in_is_refused_by_name(content: list[Any], lacks: str) -> None:
    async with web() as node:
        for stream in (False, True):
            asked = body(messages=[{"role": "user", "content": content}], stream=stream)
            answer = await node.post("/v1/messages", asked)
            assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
            assert answer.error.startswith("messages[0].content[0]")
            assert f"models have no {lacks} on this node: send text only" in answer.error
