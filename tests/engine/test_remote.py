"""An engine on another server: what is sent, what comes back in any pieces, and everything that can go wrong."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openaiserver import Server, chunk, usage

from node.engine.job import Done, Ended, Event, Job, Prefilled, Text
from node.engine.remote import RemoteEngine, RemoteOptions, options
from node.engine.remote.request import Dialect, body
from node.engine.remote.stream import MOST_EVENT, Answer, Events
from node.errors import BackendError, InvalidRequest, NotReady, Overloaded, Unauthenticated
from node.types import Candidate, FinishReason, Message, SamplingParams, Tool, ToolCall

ASK = (Message("system", "Be brief."), Message("user", "What is 40 + 2?"))


def job(candidates: int = 1, *, id: str = "j", **given: Any) -> Job:
    params = SamplingParams(**given.pop("params", {}))
    return Job(id, (), tuple((i, 100 + i) for i in range(1, candidates + 1)), params, messages=ASK, **given)


def hello(_: dict[str, Any]) -> list[Any]:
    return [chunk("4", logprob=-0.5), chunk("2", logprob=-0.1), chunk(reason="stop"), usage(9, 2)]


class Place:
    """A server with a script and an engine that is connected to it."""

    def __init__(self, script: Callable[[dict[str, Any]], list[Any]] = hello, **given: Any) -> None:
        self.server = Server(script)
        self._given = given

    async def __aenter__(self) -> "Place":
        self._running = self.server.running()
        await self._running.__aenter__()
        self.engine = RemoteEngine(RemoteOptions(self.server.url, **self._given), node="n")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()
        await self._running.__aexit__(None, None, None)

    async def run(self, asked: Job) -> list[Event]:
        return [event async for event in self.engine.run(asked)]


def candidates(events: list[Event]) -> dict[int, Candidate]:
    return {e.candidate.id: e.candidate for e in events if isinstance(e, Done)}


async def test_candidates_run_side_by_side_with_their_own_seeds() -> None:
    async with Place() as place:
        await place.engine.start()
        info = place.engine.info
        assert (info.name, info.backend, info.context) == ("served-model", "openai", 2048)
        events = await place.run(job(3, params={"max_tokens": 50, "stop": ("x",)}))
    found = candidates(events)
    assert {c.text for c in found.values()} == {"42"}
    assert {c.tokens for c in found.values()} == {2}
    assert found[1].mean_logprob == pytest.approx(-0.3)
    assert found[1].finish_reason is FinishReason.STOP
    assert found[1].node == "n"
    assert isinstance(events[-1], Ended)
    [prefilled] = [e for e in events if isinstance(e, Prefilled)]
    assert prefilled.prompt == 9
    assert "".join(t for e in events if isinstance(e, Text) for c, t in e.pieces if c == 2) == "42"
    sent = place.server.requests
    assert sorted(r["seed"] for r in sent) == [101, 102, 103]
    assert sent[0]["messages"][1] == {"role": "user", "content": "What is 40 + 2?"}
    assert (sent[0]["max_tokens"], sent[0]["stop"], sent[0]["top_k"]) == (50, ["x"], 40)


async def test_the_second_wave_begins_when_the_first_has_ended() -> None:
    async with Place(lambda _: [chunk("a"), 0.05, chunk(reason="stop")]) as place:
        await place.engine.start()
        events = await place.run(job(6, wave=4))
        assert len(candidates(events)) == 6
        running = place.engine.run(job(6, id="k", wave=4))
        async for event in running:
            if isinstance(event, Done):
                place.engine.cancel("k")
        assert len(place.server.requests) <= 6 + 5


async def test_cancelling_closes_the_connection() -> None:
    async with Place(lambda b: [chunk("begin"), *([3600] if b["seed"] == 102 else []), chunk(reason="stop")]) as place:
        await place.engine.start()
        found: dict[int, Candidate] = {}
        seen: set[int] = set()
        async for event in place.engine.run(job(2)):
            if isinstance(event, Text):
                seen |= {c for c, _ in event.pieces}
            if isinstance(event, Done):
                found[event.candidate.id] = event.candidate
            if 2 in seen and 1 in found:
                place.engine.cancel("j", [2])
        assert found[1].finish_reason is FinishReason.STOP
        assert (found[2].finish_reason, found[2].text) == (FinishReason.CANCELLED, "begin")
        await until(lambda: place.server.closed == 1 and place.server.open == 0)
        assert place.engine.free_sequences == 16


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 60 s")


async def test_leaving_the_iteration_and_the_deadline_stop_too() -> None:
    async with Place(lambda _: [chunk("so far"), 3600]) as place:
        await place.engine.start()
        running = place.engine.run(job(3))
        await anext(running)
        await running.aclose()
        await until(lambda: place.server.open == 0)
        events = await place.run(job(2, id="k", deadline=time.monotonic() + 1.0))
        assert {(c.finish_reason, c.text) for c in candidates(events).values()} == {(FinishReason.DEADLINE, "so far")}


async def test_no_more_than_the_slots_at_once() -> None:
    most = 0

    def script(_: dict[str, Any]) -> list[Any]:
        nonlocal most
        most = max(most, place.server.open)
        return [0.02, chunk("x", reason="stop")]

    async with Place(script, sequences=2) as place:
        await place.engine.start()
        assert len(candidates(await place.run(job(6)))) == 6
    assert most <= 2


async def test_a_candidate_that_breaks_off_is_lost_and_all_of_them_fail_the_job() -> None:
    def script(asked: dict[str, Any]) -> list[Any]:
        return [chunk("half"), None] if asked["seed"] == 101 else hello(asked)

    async with Place(script) as place:
        await place.engine.start()
        found = candidates(await place.run(job(2)))
        assert (found[1].finish_reason, found[2].text) == (FinishReason.CANCELLED, "42")
        with pytest.raises(BackendError, match=r"does not answer|broke off"):
            await place.run(job(1, id="k"))


@pytest.mark.parametrize(("events", "why"), [
    ([b"data: {nonsense\n\n"], "no event of this API"), ([b"data: [1]\n\n"], "no event of this API"),
    ([{"error": {"message": "out of\nmemory"}}], "the server failed: out of memory"),
    ([{"choices": [{"delta": {"content": ["x"]}}]}], "no text"), ([{"choices": 3}], "no event of this API"),
    ([chunk("x")], "broke off"), ([], "broke off"),
    ([{"choices": [{"delta": {"tool_calls": [{"index": 10**9}]}}]}], "more than 64 calls"),
    ([{"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}}]}], "no event of this API"),
    ([b"data: " + b"x" * (MOST_EVENT + 10)], "more than"),
])  # fmt: skip
async def test_what_is_no_answer(events: list[Any], why: str) -> None:
    async with Place(lambda _: events) as place:
        await place.engine.start()
        with pytest.raises(BackendError, match=why):
            await place.run(job())


async def test_a_strict_server_is_asked_more_plainly() -> None:
    def refuse(asked: dict[str, Any], _: dict[str, str]) -> tuple[int, str] | None:
        if "top_k" in asked:
            return 400, "Unrecognized request argument supplied: top_k"
        return (422, "logprobs are not supported") if "logprobs" in asked else None

    async with Place(lambda _: [chunk("ok", reason="stop")]) as place:
        place.server.refuse = refuse
        await place.engine.start()
        found = candidates(await place.run(job()))
        assert (found[1].text, found[1].mean_logprob) == ("ok", 0.0)
        assert len(place.server.requests) == 1
        assert len(candidates(await place.run(job(2, id="k")))) == 2
        assert len(place.server.requests) == 3
        with pytest.raises(InvalidRequest, match="no log probabilities"):
            await place.run(job(id="l", params={"logprobs": True}))


async def test_what_a_server_refuses_for_good() -> None:
    async with Place() as place:
        place.server.refuse = lambda asked, _: (400, "context length exceeded") if "messages" in asked else None
        await place.engine.start()
        with pytest.raises(InvalidRequest, match="refused: context length exceeded"):
            await place.run(job())
        place.server.refuse = lambda asked, _: (503, "Loading model") if "messages" in asked else None
        with pytest.raises(Overloaded, match="Loading model"):
            await place.run(job(id="k"))


async def test_the_key() -> None:
    def refuse(_: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        return None if headers.get("authorization") == "Bearer secret" else (401, "Invalid API key")

    async with Place() as place:
        place.server.refuse = refuse
        with pytest.raises(Unauthenticated, match="set CONCLAVE_BACKEND_KEY"):
            await place.engine.start()
    async with Place(key="secret") as place:
        place.server.refuse = refuse
        await place.engine.start()
        assert candidates(await place.run(job()))[1].text == "42"


async def test_servers_that_are_none() -> None:
    engine = RemoteEngine(RemoteOptions("http://127.0.0.1:9/v1"))
    with pytest.raises(BackendError, match="does not answer"):
        await engine.start()
    with pytest.raises(NotReady):
        _ = engine.info
    await engine.close()
    async with Place(model="other") as place:
        with pytest.raises(InvalidRequest, match=r"'other' is not served by .*: it has served-model"):
            await place.engine.start()
    for models, why in (({"data": []}, "no model loaded"), ([], "no model loaded"), (b"<html>", "is no JSON")):
        async with Place() as place:
            place.server.models = models
            with pytest.raises(BackendError, match=why):
                await place.engine.start()


async def test_embeddings_and_what_is_not_here() -> None:
    async with Place() as place:
        await place.engine.start()
        assert await place.engine.embed(["a", "b"]) == [[0.6, 0.8], [0.6, 0.8]]
        assert await place.engine.prompt(ASK, (), is_raw=False) == ()
        assert await place.engine.lengths(["x" * 35]) == [10]
        with pytest.raises(InvalidRequest, match="takes text"):
            place.engine.piece(1)
        with pytest.raises(InvalidRequest, match="no GBNF grammar"):
            await place.run(job(params={"grammar": "root ::= 'x'"}))


async def test_tool_calls_come_in_pieces() -> None:
    script = [
        chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a": 40,'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": ' "b": 2}'}}]),
        chunk(reason="tool_calls"),
    ]
    async with Place(lambda _: script) as place:
        await place.engine.start()
        tools = (Tool("add", "adds", '{"type": "object"}'),)
        [found] = candidates(await place.run(job(tools=tools))).values()
        assert found.tool_calls == (ToolCall("add", '{"a": 40, "b": 2}', "c1"),)
        assert found.finish_reason is FinishReason.TOOL_CALLS
        assert place.server.requests[0]["tools"][0]["function"]["name"] == "add"


def test_a_conversation_with_calls_is_sent_in_openais_form() -> None:
    said = (
        Message("assistant", "", (ToolCall("add", "{}", "c1"),)),
        Message("tool", "42", tool_call_id="c1"),
    )
    sent = body(
        "m", Job("j", (), ((1, 5),), SamplingParams(json_schema='{"type": "number"}'), messages=said), 5, Dialect()
    )
    assert sent["messages"][0]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert sent["messages"][1] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "number"}


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_events_come_in_any_pieces(texts: list[str], sizes: list[int], crlf: bool) -> None:
    end = b"\r\n" if crlf else b"\n"
    data = b"".join(b"data: " + json.dumps(chunk(t)).encode() + end + end + b": comment" + end for t in texts)
    events, answer, at, i = Events(), Answer(), 0, 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        for event in events.feed(data[at : at + size]):
            answer.add(event)
        at, i = at + size, i + 1
    assert answer.text == "".join(texts)
    assert answer.tokens == len(texts)


@pytest.mark.parametrize("word", ["reasoning_content", "reasoning"])
def test_what_a_server_sets_apart_is_a_thought_again(word: str) -> None:
    """And a thought is not sent back to it."""
    answer = Answer()
    for delta in ({word: "h"}, {word: "m", "content": None}, {"content": "4"}, {"content": "2"}):
        answer.add(json.dumps({"choices": [{"delta": delta}]}))
    assert answer.text == "<think>\nhm\n</think>\n\n42"
    with pytest.raises(BackendError, match="no event of this API"):
        answer.add(json.dumps({"choices": [{"delta": {word: {"a": 1}}}]}))
    asked = replace(job(params={"think": False}), messages=(*ASK, Message("assistant", answer.text)))
    sent = body("m", asked, 1, Dialect())
    assert sent["messages"][-1]["content"] == "42"
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(
                        "choices delta content text usage tool_calls index function name arguments logprobs token "
                        "logprob top_logprobs bytes finish_reason error message completion_tokens prompt_tokens tokens "
                        "token_logprobs id".split()), x, max_size=4), max_leaves=25))  # fmt: skip
def test_hostile_events_cost_one_of_our_errors(event: Any) -> None:
    answer = Answer()
    with contextlib.suppress(BackendError):
        answer.add(json.dumps(event))
    assert isinstance(answer.text, str)
    _ = answer.calls, answer.mean_logprob


@pytest.mark.parametrize(("url", "base"), [
    ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"), ("http://h:1/v1/", "http://h:1/v1"),
    ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"), ("https://h/api/openai", "https://h/api/openai"),
])  # fmt: skip
def test_urls(url: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCLAVE_BACKEND_KEY", "k")
    found = options(url, "auto", 4, 0, 64)
    assert (found.url, found.model, found.key) == (base, "", "k")


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "http://", "http://u:p@h/v1", "http://[::1/v1"])
def test_no_urls(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--url"):
        options(url, "auto", 4, 0, 64)


@pytest.fixture
async def engine() -> AsyncIterator[RemoteEngine]:
    async with Place() as place:
        await place.engine.start()
        yield place.engine


async def test_after_the_end(engine: RemoteEngine) -> None:
    await engine.close()
    with pytest.raises(NotReady):
        await anext(engine.run(job()))
