"""Requests that are wrong: one status with one line, the right code, and a node that goes on."""

from __future__ import annotations

import grpc
import pytest
from swarm import Client, Node, Swarm, request

from node.v1 import generate_pb2, types_pb2

Pair = tuple[Swarm, list[Node]]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def said(*roles: str, content: str = "hello") -> list[types_pb2.Message]:
    return [types_pb2.Message(role=r, content=content) for r in roles]


WRONG: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no messages": ({"messages": []}, ("messages is empty",)),
    "empty prompt": ({"messages": said("user", content="")}, ("messages[0]", "empty prompt")),
    "blank prompt": ({"messages": said("user", content=" \n\t")}, ("messages[0]", "empty prompt")),
    "unknown role": ({"messages": said("robot")}, ("messages[0].role", "'robot'", "assistant")),
    "no role": ({"messages": said("")}, ("messages[0].role", "user")),
    "assistant last": ({"messages": said("user", "assistant")}, ("last message", "'assistant'", "user")),
    "10,000 messages": ({"messages": said(*["user"] * 10_000)}, ("10000 messages", "4096")),
    "-1 candidates": ({"candidates": -1}, ("candidates is -1", "1 to 64")),
    "10,000 candidates": ({"candidates": 10_000}, ("candidates is 10000", "1 to 64")),
    "negative max_tokens": ({"params": {"max_tokens": -3}}, ("max_tokens is -3",)),
    "NaN temperature": ({"params": {"temperature": float("nan")}}, ("temperature is nan", "0 to 10")),
    "infinite temperature": ({"params": {"temperature": float("inf")}}, ("temperature is inf",)),
    "negative temperature": ({"params": {"temperature": -1.0}}, ("temperature is -1",)),
    "top_p 0": ({"params": {"top_p": 0.0}}, ("top_p is 0",)),
    "NaN top_p": ({"params": {"top_p": float("nan")}}, ("top_p is nan",)),
    "negative top_k": ({"params": {"top_k": -1}}, ("top_k is -1",)),
    "min_p 2": ({"params": {"min_p": 2.0}}, ("min_p is 2",)),
    "repeat_penalty 0": ({"params": {"repeat_penalty": 0.0}}, ("repeat_penalty is 0",)),
    "17 stops": ({"params": {"stop": ["x"] * 17}}, ("stop", "16")),
    "an empty stop": ({"params": {"stop": [""]}}, ("stop",)),
    "two formats": ({"params": {"json_schema": "{}", "grammar": "x"}}, ("exclude each other",)),
    "unknown strategy": ({"strategy": "coin"}, ("'coin'", "majority")),
    "append to nothing": ({"append": True}, ("append needs a topic",)),
    "a long topic": ({"topic": "x" * 257}, ("topic", "257", "256")),
    "a topic with control characters": ({"topic": "a\x1b[2J"}, ("topic", "control characters")),
    "a long request id": ({"request_id": "é" * 129}, ("request_id", "258", "256")),
    "a tool without a name": ({"tools": [{"description": "x"}]}, ("tools[0]", "no name")),
    "a tool with a broken schema": ({"tools": [{"name": "f", "parameters": "{"}]}, ("tools[0]", "not JSON")),
    "a tool nested without end": ({"tools": [{"name": "f", "parameters": "[" * 100_000}]}, ("tools[0]", "not JSON")),
    "a tool with a list": ({"tools": [{"name": "f", "parameters": "[]"}]}, ("tools[0]", "JSON object")),
    "a prompt that is too long": ({"messages": said("user", content="word " * 5000)}, ("5004", "4096")),
}

# These reach llama.cpp or come close to it.
WRONG_FOR_LLAMA: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no grammar": ({"params": {"grammar": "this is none"}}, ("grammar",)),
    "a grammar without root": ({"params": {"grammar": 'leaf ::= "a"'}}, ("grammar", "root")),
    "left recursion": ({"params": {"grammar": 'root ::= root "a"'}}, ("grammar", "left recursion")),
    "a deep grammar": ({"params": {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000}}, ("nested", "500")),
    "a grammar backwards": ({"params": {"grammar": 'root ::= "a"{5,2}'}}, ("{5,2}",)),
    "a grammar with another model's token": ({"params": {"grammar": "root ::= <[999999]>"}}, ("token 999999",)),
    "a schema that is no JSON": ({"params": {"json_schema": "{"}}, ("json_schema", "not JSON")),
    "a schema that is no object": ({"params": {"json_schema": "5"}}, ("json_schema", "object")),
    "a schema for a long text": (
        {"params": {"json_schema": '{"type":"string","maxLength":100000}'}},
        ("maxLength 100000", "10000"),
    ),
    "a schema with a foreign reference": ({"params": {"json_schema": '{"$ref":"http://x/y"}'}}, ("json_schema",)),
    "a prompt that is too long": ({"messages": said("user", content="word " * 5000)}, ("2048",)),
}


def refused(client: Client, fields: dict[str, object]) -> tuple[grpc.StatusCode, str]:
    """How both calls refuse a request: they say the same."""
    asked = request("hello", **fields)
    with pytest.raises(grpc.RpcError) as unary:
        client.generate.Generate(asked, timeout=30)
    with pytest.raises(grpc.RpcError) as stream:
        list(client.generate.Stream(generate_pb2.StreamRequest(request=asked), timeout=30))
    code, details = unary.value.code(), unary.value.details()  # type: ignore[attr-defined]
    assert (stream.value.code(), stream.value.details()) == (code, details)  # type: ignore[attr-defined]
    return code, details


@pytest.mark.parametrize("name", WRONG)
def test_refused_by_the_api(fakes: Pair, name: str) -> None:
    fields, says = WRONG[name]
    client = fakes[1][0].client
    code, details = refused(client, fields)
    assert code is INVALID, details
    assert "\n" not in details
    for part in says:
        assert part in details


@pytest.mark.parametrize("name", WRONG_FOR_LLAMA)
def test_refused_by_the_model(llamas: Pair, name: str) -> None:
    fields, says = WRONG_FOR_LLAMA[name]
    node = llamas[1][0]
    code, details = refused(node.client, fields)
    assert code is INVALID, details
    for part in says:
        assert part in details
    assert node.client.ask("What is 12 + 30?", scope=generate_pb2.SCOPE_LOCAL).text


# field 2 (messages), 9 bytes: field 1 (role) "user", field 2 (content) one byte that is no UTF-8
NOT_UTF8 = b"\x12\x09\x0a\x04user\x12\x01\xff"


@pytest.mark.parametrize("data", [NOT_UTF8, b"\xff" * 40, b"\x12\xff\xff\xff\xff\x0f"], ids=["text", "bytes", "length"])
@pytest.mark.parametrize(("method", "wrapped"), [("Generate", False), ("Stream", True)])
def test_bytes_that_are_no_message(fakes: Pair, method: str, wrapped: bool, data: bytes) -> None:
    node = fakes[1][0]
    if wrapped:
        data = b"\x0a" + bytes([len(data)]) + data
        call = node.client.channel.unary_stream(f"/node.v1.Generate/{method}")
        with pytest.raises(grpc.RpcError) as e:
            list(call(data, timeout=30))
    else:
        with pytest.raises(grpc.RpcError) as e:
            node.client.channel.unary_unary(f"/node.v1.Generate/{method}")(data, timeout=30)
    assert e.value.code() is INVALID  # type: ignore[attr-defined]
    assert "UTF-8" in e.value.details()  # type: ignore[attr-defined]


def test_a_message_larger_than_the_limit(fakes: Pair) -> None:
    client = fakes[1][0].client
    with pytest.raises(grpc.RpcError) as e:
        client.ask("x" * (65 << 20))
    assert e.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert client.ask("hello").text == "echo: hello"


@pytest.mark.parametrize("count", [0, 257])
def test_texts_to_embed(fakes: Pair, count: int) -> None:
    client = fakes[1][0].client
    with pytest.raises(grpc.RpcError) as e:
        client.generate.Embed(generate_pb2.EmbedRequest(texts=["x"] * count), timeout=30)
    assert e.value.code() is INVALID  # type: ignore[attr-defined]
    assert f"{count} texts" in e.value.details()  # type: ignore[attr-defined]


def test_what_is_odd_but_right(fakes: Pair) -> None:
    """The other side of each limit."""
    client = fakes[1][0].client
    for fields in (
        {"candidates": 64},
        {"messages": said(*["user", "assistant"] * 200, "user")},
        {"params": {"temperature": 0.0, "top_k": 0, "min_p": 1.0, "top_p": 1.0, "seed": 2**64 - 1}},
        {"params": {"stop": ["x"] * 16, "max_tokens": 1}},
        {"topic": "t" * 256, "request_id": "é" * 128},
        {"messages": said("system", "user", content="\0\u2028\U0001f600\ufffe")},
    ):
        assert client.ask("hello", **fields).outcome.planned
