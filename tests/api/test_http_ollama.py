"""Ollama's API: what its requests mean, the lines of its streams, its errors. Its own client is tests/e2e/clients'."""

from __future__ import annotations

import json
from typing import Any

import pytest
from web import SLOW, Answer, web

from node.api.http.ollama import asked, schema
from node.engine.fake import FakeSpec

ASK = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def lines(answer: Answer) -> list[Any]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


async def test_a_chat_is_streamed_unless_it_says_otherwise() -> None:
    async with web() as node:
        said = lines(await node.post("/api/chat", {"model": "fake", "messages": ASK}))
        assert [s["message"]["content"] for s in said] == ["echo:", " hi", ""]
        assert [s["done"] for s in said] == [False, False, True]
        assert (said[-1]["done_reason"], said[-1]["eval_count"]) == ("stop", 3)
        assert "conclave" not in said[-1]
        whole = (await node.post("/api/chat", {"model": "fake:latest", "messages": ASK, "stream": False})).json
        assert (whole["message"], whole["model"]) == ({"role": "assistant", "content": "echo: hi"}, "fake:latest")
        assert whole["total_duration"] >= whole["eval_duration"] > 0
        vote = (await node.post("/api/chat", {"model": "conclave", "messages": ASK, "stream": False})).json
        assert vote["conclave"]["planned"] > 1
        assert vote["message"]["content"] == "echo: hi"


async def test_generate_is_a_question_or_a_text_as_it_is() -> None:
    async with web() as node:
        said = lines(await node.post("/api/generate", {"model": "fake", "prompt": "hi", "options": {"num_predict": 1}}))
        assert [(s["response"], s["done"]) for s in said] == [("echo:", False), ("", True)]
        assert said[-1]["done_reason"] == "length"
        body = {"model": "fake", "prompt": "hi", "raw": True, "stream": False}
        raw, asked_ = [(await node.post("/api/generate", body | more)).json for more in ({}, {"raw": False})]
        assert raw["prompt_eval_count"] < asked_["prompt_eval_count"], "no template around it"
        likely = (await node.post("/api/generate", body | {"logprobs": True, "top_logprobs": 1})).json
        assert [len(t["top_logprobs"]) for t in likely["logprobs"]] == [1, 1]  # the end is no text


async def test_a_conversation_is_kept_as_a_topic_where_it_is_asked_for() -> None:
    async with web() as node:
        await node.post("/api/chat", {"model": "fake", "messages": ASK, "topic": "t", "stream": False})
        held = node.store.get("t").messages
        assert [m.content for m in held] == ["hi", "echo: hi"]


async def test_calls_are_objects_and_their_results_find_them() -> None:
    async with web() as node:
        body = {"model": "fake", "messages": [{"role": "user", "content": CALL}], "tools": [ADD], "stream": False}
        (call,) = (await node.post("/api/chat", body)).json["message"]["tool_calls"]
        assert call["function"] == {"index": 0, "name": "add", "arguments": {"a": 1}}
        streamed = lines(await node.post("/api/chat", body | {"stream": True}))
        assert [c["function"]["name"] for s in streamed for c in s["message"].get("tool_calls", ())] == ["add"]

    def called(name: str) -> schema.ToolCall:
        return schema.ToolCall(schema.Function(name, {"a": 1}))

    made = asked.chat(
        schema.ChatRequest(
            messages=[
                schema.Message("assistant", tool_calls=[called("add"), called("mul"), called("add")]),
                schema.Message("tool", "6", tool_name="mul"),
                schema.Message("tool", "2", tool_name="add"),
                schema.Message("tool", "3"),
                schema.Message("tool", "nobody asked"),
            ]
        )
    ).messages
    ids = [c.id for c in made[0].tool_calls or ()]
    assert len(set(ids)) == 3
    assert [m.tool_call_id for m in made[1:]] == [ids[1], ids[0], ids[2], None]


async def test_options_are_taken_or_refused() -> None:
    wanted = schema.Options(temperature=0, top_k=7, num_predict=-2, stop=["x"], repeat_penalty=1.1)
    made = asked.chat(schema.ChatRequest(model="m:latest", options=wanted, format="json"))
    assert (made.model, made.temperature, made.top_k, made.max_tokens, made.stop) == ("m", 0, 7, -1, ["x"])
    assert made.response_format is not None
    assert made.response_format.type == "json_object"
    async with web() as node:
        for more, said in (
            ({"options": {"temperature": 99}}, "$.options.temperature"),
            ({"format": "xml"}, "format is 'xml'"),
            (
                {"messages": [*ASK, {"role": "user", "content": "x", "images": ["aGk="]}]},
                "models have no vision",
            ),
            ({"messages": [{"role": "nobody", "content": "x"}]}, "nobody"),
        ):
            found = await node.post("/api/chat", {"model": "fake", "messages": ASK} | more)
            assert (found.status, said in found.json["error"]) == (400, True), found.body
        for field, value in (("suffix", "x"), ("template", "x"), ("context", [1]), ("images", ["aGk="])):
            found = await node.post("/api/generate", {"model": "fake", "prompt": "hi", field: value})
            assert found.status == 400, field


async def test_which_models_there_are() -> None:
    async with web() as node:
        listed = (await node.get("/api/tags")).json["models"]
        assert [m["name"] for m in listed][:2] == ["conclave:latest", "conclave:fast"]
        assert len({m["digest"] for m in listed}) == len(listed)
        for m in listed:
            shown = (await node.post("/api/show", {"model": m["name"]})).json
            assert "tools" in shown["capabilities"]
            assert "vision" not in shown["capabilities"]
            assert shown["model_info"]["unknown.context_length"] == 4096
        assert [m["name"] for m in (await node.get("/api/ps")).json["models"]] == ["fake:latest"]
        assert (await node.get("/api/version")).json["conclave"] == "1.2.3"
        assert (await node.post("/api/show", {"name": "llama3"})).status == 404
        loaded = (await node.post("/api/generate", {"model": "fake"})).json
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert (await node.post("/api/chat", {"model": "llama3"})).status == 404


async def test_embeddings() -> None:
    async with web() as node:
        many = (await node.post("/api/embed", {"model": "fake", "input": ["a", "b"]})).json
        one = (await node.post("/api/embeddings", {"model": "fake", "prompt": "a"})).json
        assert many["embeddings"][0] == one["embedding"]
        assert len(many["embeddings"]) == 2
        assert (await node.post("/api/embed", {"model": "fake", "input": []})).json["embeddings"] == []
        assert (await node.post("/api/embed", {"model": "fake", "input": "a", "dimensions": 3})).status == 400
        assert (await node.post("/api/embed", {"model": "nope", "input": "a"})).status == 404


@pytest.mark.parametrize("path", ["pull", "push", "create", "copy", "delete", "blobs/sha256:00"])
async def test_what_changes_models_is_not_served(path: str) -> None:
    async with web() as node:
        found = await node.call("DELETE" if path == "delete" else "POST", f"/api/{path}", {"model": "x"})
        assert (found.status, "python -m node models" in found.json["error"]) == (501, True)


async def test_an_error_on_the_way_is_the_last_line() -> None:
    async with web(FakeSpec(answers=("a b c d e f g h i j k l m",), fail_after=24)) as node:
        said = lines(await node.post("/api/chat", {"model": "fake", "messages": ASK, "options": {"num_predict": 64}}))
        assert "error" in said[-1]
        assert isinstance(said[-1]["error"], str)
        assert all("error" not in s for s in said[:-1])


async def test_who_leaves_stops_it_and_a_long_silence_is_an_empty_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.api.http.wait.KEEP_ALIVE_S", 0.05)
    async with web(SLOW) as node:
        body = {"model": "conclave:2", "messages": ASK}  # a vote: nothing is written until it is decided
        conversation = await node.open("POST", "/api/chat", body)
        await node.busy()
        await conversation.event()
        first = json.loads(bytes((await conversation.event()).data))
        assert (first["message"]["content"], first["done"]) == ("", False)
        await conversation.close()
        await node.free()
