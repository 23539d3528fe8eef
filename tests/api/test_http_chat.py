"""POST /v1/chat/completions over a real listener: votes, streams, several choices, tools, and clients that leave."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from web import SLOW, asked, web

from node import wire
from node.api.http import asked as reading
from node.api.http import deltas, schema, wait
from node.coordinator import Event
from node.engine.fake import FakeBackend, FakeSpec
from node.types import FinishReason, GenerateResult, Outcome, Strategy, Timings, Usage, Version

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"a": {}}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def said(events: list[dict], choice: int = 0) -> str:
    return "".join(
        c["delta"].get("content") or "" for e in events if e != "[DONE]" for c in e["choices"] if c["index"] == choice
    )


async def test_a_vote_comes_with_how_it_went() -> None:
    async with web(FakeSpec(answers=("answer: 42", "answer: 42", "answer: 7"))) as node:
        found = await node.post(CHAT, asked("What is 6 * 7?", model="conclave:majority-9", seed=5))
        body = found.json
        assert (found.status, body["object"], body["model"]) == (200, "chat.completion", "conclave:majority-9")
        [choice] = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": "answer: 42", "refusal": None}
        assert choice["finish_reason"] == "stop"
        votes = body["conclave"]
        assert (votes["strategy"], votes["planned"]) == ("majority", 9)
        assert votes["clusters"][0]["key"] == "42"
        assert votes["winner"] in votes["clusters"][0]["members"]
        usage = body["usage"]
        assert usage["completion_tokens"] == 3  # two words and the end
        assert usage["total_tokens"] == usage["prompt_tokens"] + 3
        assert votes["candidate_tokens"] > 3


async def test_the_models_own_name_is_one_candidate_streamed_as_it_is_written() -> None:
    async with web(FakeSpec(answers=("one two three four",), tokens_per_s=100)) as node:
        found = await node.post(CHAT, asked(model="fake", stream=True))
        assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, done = found.events
        assert done == "[DONE]"
        assert len({e["id"] for e in events}) == 1
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
        assert said(events) == "one two three four"
        assert sum(bool(c["delta"].get("content")) for e in events for c in e["choices"]) == 4
        assert len(found.pieces) >= 4, "each token goes out when it is there"
        assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
        assert all("conclave" not in e and "usage" not in e for e in events)


async def test_a_vote_is_streamed_when_it_is_decided() -> None:
    async with web(FakeSpec(answers=("one answer: 42", "two answer: 42", "three answer: 7"))) as node:
        *events, _ = (await node.post(CHAT, asked("What is 6 * 7?", stream=True, model="conclave:9", seed=1))).events
        texts = [c["delta"]["content"] for e in events for c in e["choices"] if c["delta"].get("content")]
        assert len(texts) == 1, "nothing of a candidate that may lose"
        votes = events[-1]["conclave"]
        assert texts[0] == next(c["text"] for c in votes["candidates"] if c["id"] == votes["winner"])


async def test_events_tell_of_every_candidate() -> None:
    async with web() as node:
        *events, _ = (
            await node.post(CHAT, asked(stream=True, conclave={"candidates": 3, "events": True, "early_stop": "off"}))
        ).events
        told = [e["conclave"] for e in events if not e["choices"]]
        assert told[0]["event"] == "plan"
        assert told[0]["shares"] == [{"node": "a" * 16, "candidates": [1, 2, 3]}]
        assert {t["candidate"] for t in told if t["event"] == "token"} == {1, 2, 3}
        assert [t["text"] for t in told if t["event"] == "candidate"] == ["echo: hi"] * 3


async def test_who_leads_is_told_only_where_it_is_asked() -> None:
    async with web(FakeSpec(answers=("one answer: 42", "two answer: 42", "three answer: 7"))) as node:
        how = {"candidates": 5, "early_stop": "off"}
        *events, _ = (await node.post(CHAT, asked("What is 6 * 7?", stream=True, seed=1, conclave=how))).events
        assert not [e for e in events if "event" in e.get("conclave", {})]
        how["leader"] = True
        *events, _ = (await node.post(CHAT, asked("What is 6 * 7?", stream=True, seed=1, conclave=how))).events
        leads = [e["conclave"] for e in events if "event" in e.get("conclave", {})]
        assert {e["event"] for e in leads} == {"leader"}
        assert [e["finished"] for e in leads] == [1, 2, 3, 4, 5]
        votes = events[-1]["conclave"]
        assert leads[-1]["candidate"] in votes["clusters"][0]["members"]
        assert (leads[-1]["answer"], leads[-1]["share"]) == (votes["clusters"][0]["key"], votes["confidence"])
        assert all(e["text"] == votes["candidates"][e["candidate"] - 1]["text"] for e in leads)
        assert said(events) == next(c["text"] for c in votes["candidates"] if c["id"] == votes["winner"])
        # Whoever reads the answer only sees none of it: these pieces have no choices.
        assert all(e["choices"] == [] for e in events if "event" in e.get("conclave", {}))


async def test_a_long_prompt_says_how_far_it_is_where_it_is_asked() -> None:
    async with web() as node:
        body = asked("word " * 2000, stream=True, model="fake", conclave={"progress": True})
        *events, _ = (await node.post(CHAT, body)).events
        told = [e["conclave"] for e in events if "event" in e.get("conclave", {})]
        assert len(told) >= 3
        assert {e["event"] for e in told} == {"progress"}
        assert [e["computed"] for e in told] == sorted(e["computed"] for e in told)
        assert all(e["computed"] < e["prompt"] for e in told)


@pytest.mark.parametrize("model", ["fake", "conclave"])
async def test_several_choices(model: str) -> None:
    async with web(FakeSpec(answers=("a", "b", "c", "d", "e", "f", "g"))) as node:
        body = (await node.post(CHAT, asked(model=model, n=5, seed=11))).json
        assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3, 4]
        texts = [c["message"]["content"] for c in body["choices"]]
        assert len(set(texts)) > 1
        assert body["usage"]["completion_tokens"] == sum(2 for _ in texts)  # a word and the end
        if model == "conclave":
            votes = body["conclave"]
            assert texts[0] == next(c["text"] for c in votes["candidates"] if c["id"] == votes["winner"])
        *events, _ = (await node.post(CHAT, asked(model=model, n=5, seed=11, stream=True))).events
        assert [said(events, i) for i in range(5)] == texts
        ends = [c["index"] for e in events for c in e["choices"] if c["finish_reason"]]
        assert sorted(ends) == [0, 1, 2, 3, 4]


async def test_usage_and_what_was_cached() -> None:
    async with web() as node:
        more = {"model": "fake", "prompt_cache_key": "k", "stream": True, "stream_options": {"include_usage": True}}
        first = asked("one two three four five", **more)
        *events, last, _ = (await node.post(CHAT, first)).events
        assert last["choices"] == []
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert all("usage" not in e for e in events)
        following = [*first["messages"], {"role": "assistant", "content": "echo: one two three four five"}]
        following.append({"role": "user", "content": "six"})
        again = {"messages": following, "model": "fake", "prompt_cache_key": "k"}
        usage = (await node.post(CHAT, again)).json["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= last["usage"]["prompt_tokens"]


async def test_what_agents_send_is_understood() -> None:
    async with web() as node:
        body = {
            "messages": [
                {"role": "developer", "content": "be brief", "name": "x"},
                {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            ],
            "max_completion_tokens": 3,
            "temperature": 1,
            "top_p": 0,
            "stop": "never",
            "user": "me",
            "logit_bias": None,
            "metadata": {"a": 1},
            "service_tier": "auto",
            "stream": None,
        }
        choice = (await node.post(CHAT, body, authorization="Bearer whatever")).json["choices"][0]
        assert choice["message"]["content"] == "echo: one two"
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("model", ["fake", "conclave"])
async def test_log_probabilities(model: str) -> None:
    async with web(FakeSpec(answers=("one two",), logprob=-0.5)) as node:
        wish = asked(model=model, logprobs=True, top_logprobs=2)
        content = (await node.post(CHAT, wish)).json["choices"][0]["logprobs"]["content"]
        assert "".join(bytes(t["bytes"]).decode() for t in content) == "one two"
        assert {t["logprob"] for t in content} == {-0.5}
        assert all(len(t["top_logprobs"]) <= 2 for t in content)
        *events, _ = (await node.post(CHAT, wish | {"stream": True})).events
        streamed = [t for e in events for c in e["choices"] if c["logprobs"] for t in c["logprobs"]["content"]]
        assert streamed == content
        assert said(events) == "one two"
        text = {"model": model, "prompt": "x", "logprobs": 1, "echo": True}
        for found in (
            [(await node.post("/v1/completions", text)).json],
            (await node.post("/v1/completions", text | {"stream": True})).events[:-1],
        ):
            told = [c["logprobs"] for e in found for c in e["choices"] if c["logprobs"]]
            tokens = [t for each in told for t in each["tokens"]]
            offsets = [o for each in told for o in each["text_offset"]]
            assert tokens[:2] == ["one", " two"]
            assert offsets[:2] == [1, 4]


async def test_penalties_and_biases_reach_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    sampler = FakeBackend.sampler
    monkeypatch.setattr(FakeBackend, "sampler", lambda *a: seen.append(a[1]) or sampler(*a))
    async with web() as node:
        wish = asked(model="fake", presence_penalty=0.5, frequency_penalty=-1, logit_bias={"7": -100}, seed=-1, top_k=3)
        assert (await node.post(CHAT, wish | {"ignore_eos": True, "max_tokens": 5})).status == 200
    [params] = seen
    assert (params.presence_penalty, params.frequency_penalty, params.logit_bias) == (0.5, -1, ((7, -100),))
    assert (params.seed, params.top_k, params.ignore_eos) == (2**64 - 1, 3, True)


# ---- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fake", "conclave"])
async def test_tool_calls(model: str) -> None:
    async with web(FakeSpec(answers=(f"Let me see. {CALL} {CALL}",))) as node:
        message = (await node.post(CHAT, asked(model=model, tools=[TOOL]))).json["choices"][0]["message"]
        assert message["content"].strip() == "Let me see."
        assert [(c["type"], c["function"]) for c in message["tool_calls"]] == [
            ("function", {"name": "add", "arguments": '{"a": 1}'})
        ] * 2
        assert len({c["id"] for c in message["tool_calls"]}) == 2
        *events, _ = (await node.post(CHAT, asked(model=model, tools=[TOOL], stream=True))).events
        assert said(events).strip() == "Let me see."
        calls: dict[int, list[str]] = {}
        for e in events:
            for c in e["choices"]:
                for part in c["delta"].get("tool_calls", ()):
                    held = calls.setdefault(part["index"], ["", ""])
                    held[0] += part["function"].get("name", "")
                    held[1] += part["function"]["arguments"]
        assert calls == {0: ["add", '{"a": 1}'], 1: ["add", '{"a": 1}']}
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        one = asked(model=model, tools=[TOOL], parallel_tool_calls=False)
        assert len((await node.post(CHAT, one)).json["choices"][0]["message"]["tool_calls"]) == 1
        none = asked(model=model, tools=[TOOL], tool_choice="none")
        message = (await node.post(CHAT, none)).json["choices"][0]["message"]
        assert "tool_calls" not in message
        assert "<tool_call>" in message["content"]


async def test_a_bare_call_and_what_came_of_it() -> None:
    async with web(FakeSpec(answers=('{"name": "add", "arguments": {"a": 2}}',))) as node:
        message = (await node.post(CHAT, asked(model="fake", tools=[TOOL], tool_choice="required"))).json["choices"][0]
        [call] = message["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"a": 2}
        assert message["message"]["content"] is None
        more = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "3"},
        ]
        assert (await node.post(CHAT, {"messages": more, "model": "fake"})).status == 200


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_comments_keep_a_connection_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "KEEP_ALIVE_S", 0.05)
    async with web(FakeSpec(prefill_per_s=40)) as node:
        found = await node.post(CHAT, asked("a b c d e f g h i j k l", model="fake", stream=True))
        lines = found.body.decode().splitlines()
        assert lines[0] == ": still working"
        assert lines.count(": still working") >= 2
        assert said(found.events[:-1]).startswith("echo:")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["fake", "conclave:4"])
async def test_a_client_that_leaves_frees_its_sequences(model: str, stream: bool) -> None:
    async with web(SLOW) as node:
        conversation = await node.open("POST", CHAT, asked(model=model, stream=stream, max_tokens=4000))
        await node.busy()
        if stream and model == "fake":
            await conversation.event()
            await conversation.event()
        await conversation.close()
        await node.free()


async def test_a_node_that_is_full_says_when_to_try_again() -> None:
    async with web(SLOW, queue_limit=1) as node:
        full = asked(conclave={"candidates": 16}, max_tokens=250)
        opened = []
        for _ in range(2):
            opened.append(await node.open("POST", CHAT, full))
            await node.busy()
        while node.engine.load.queued < 1:
            await wait.asyncio.sleep(0.005)
        for stream in (False, True):
            found = await node.post(CHAT, asked(stream=stream))
            assert (found.status, found.headers["retry-after"]) == (429, "1")
            assert "try again later" in found.error
        for conversation in opened:
            await conversation.close()
        await node.free()


async def test_an_answer_that_breaks_off_says_why() -> None:
    async with web(FakeSpec(answers=("a b c d e f g h i j k l m",), fail_after=24)) as node:
        found = await node.post(CHAT, asked(model="fake", stream=True))
        *events, error, done = found.events
        assert said(events).startswith("a b")
        assert "the fake backend fails" in error["error"]["message"]
        assert done == "[DONE]"
        found = await node.post(CHAT, asked(model="fake"))
        assert (found.status, found.json["error"]["type"]) == (500, "server_error")


async def test_a_request_that_is_repeated_gets_the_same_answer() -> None:
    async with web(FakeSpec(answers=tuple("abcdefgh"))) as node:
        fresh = await node.post(CHAT, asked(model="fake"))
        assert len(fresh.headers["x-request-id"]) == 16
        named = await node.post(CHAT, asked(model="fake", stream=True), idempotency_key="mine")
        assert named.headers["x-request-id"] == "mine"
        first = (await node.post(CHAT, asked(model="fake"), idempotency_key="one")).json
        again = (await node.post(CHAT, asked(model="fake"), idempotency_key="one")).json
        assert first["choices"] == again["choices"]
        found = await node.post(CHAT, asked("other", model="fake"), idempotency_key="one")
        assert (found.status, "belongs to one request" in found.error) == (400, True)


async def test_topics() -> None:
    async with web() as node:
        await node.post(CHAT, asked(topic="garden", model="fake"))
        assert [t.topic for t in node.store.list()] == ["garden"]
        await node.post(CHAT, asked(prompt_cache_key="k", model="fake"))
        assert [t.topic for t in node.store.list()] == ["cache:k", "garden"]
    async with web(SLOW) as node:
        long = asked(prompt_cache_key="k", model="fake", max_tokens=300)
        first = await node.open("POST", CHAT, long)
        await node.busy()
        second = await node.post(CHAT, asked(prompt_cache_key="k", model="fake", max_tokens=2))
        assert second.status == 200, "a busy key holds nobody up"
        await first.close()


async def test_an_answer_of_whose_vote_nothing_is_left_is_the_choice() -> None:
    """So it comes to a request that was answered before, by a node that is gone."""
    outcome = Outcome(Strategy.MAJORITY, 2, 1.0, 1.0, (), (), False, 3, 3)
    kept = GenerateResult(
        "42", FinishReason.STOP, "t", Version(), outcome, (), {}, Usage(9, 0, 3, 0), Timings(), "k"
    )  # fmt: skip

    async def events() -> AsyncGenerator[Event, None]:
        yield kept

    request = schema.ChatRequest(messages=[schema.Message("user", "hi")])
    wanted = reading.chat(request, reading.Node("fake", wire.Defaults()))
    answered, [said] = await deltas.whole(deltas.deltas(events(), wanted, "n"))
    assert (said.text, answered.choices[0].tokens, deltas.reason(answered.choices[0])) == ("42", 3, "stop")
