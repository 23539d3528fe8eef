"""Models that think before they answer: what is told apart, what votes, and what the next turn carries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from web import Answer, Web, asked, web

from node.core.formats import Format
from node.engine.backend import ModelInfo, Sampler
from node.engine.fake import FakeBackend, FakeSpec
from node.engine.template import ChatTemplate
from node.types import Message, SamplingParams, Tool

# As DeepSeek-R1's opens a thought in the prompt, and as Qwen3's can be told not to.
TEMPLATE = """
{%- for m in messages %}
    {{- '<' + m.role + '>\\n' + m.content + '\\n</' + m.role + '>\\n' }}
{%- endfor %}
{{- '<assistant>\\n<think>\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
    {{- '\\n</think>\\n\\n' }}
{%- endif %}
"""
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": %d}}\n</tool_call>'


class Thinker(FakeBackend):
    """A fake model with such a template. Whatever KV a candidate begins with must be that of its prompt."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        return ChatTemplate(TEMPLATE).render(messages, tools, think)

    def sampler(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Sampler:
        self.prompt = list(prompt)
        return super().sampler(params, seed, prompt)

    def _plan(self, prompt: list[int], seed: int) -> list[int]:
        assert prompt == self.prompt
        return super()._plan(prompt, seed)


def thinks(*answers: str) -> Any:
    return web(FakeSpec(answers=answers), backend=Thinker)


def deltas(answer: Answer) -> tuple[str, str]:
    """The thought and the text of a stream of chunks."""
    found = [c["delta"] for e in answer.events if e != "[DONE]" for c in e["choices"]]
    return "".join(d.get("reasoning_content") or "" for d in found), "".join(d.get("content") or "" for d in found)


async def chat(node: Web, **fields: Any) -> Any:
    return (await node.post("/v1/chat/completions", asked(**({"model": "fake"} | fields)))).json


async def test_thoughts_come_apart_from_the_answer() -> None:
    async with thinks("So 12 + 30 .\n</think>\n\nIt is 42 .") as node:
        said = (await chat(node))["choices"][0]
        assert (said["message"]["reasoning_content"], said["message"]["content"]) == ("So 12 + 30 .", "It is 42 .")
        assert said["finish_reason"] == "stop"
        streamed = await node.post("/v1/chat/completions", asked(model="fake", stream=True))
        assert deltas(streamed) == ("So 12 + 30 .", "It is 42 .")
        voted = await node.post("/v1/chat/completions", asked(model="conclave", stream=True))
        assert deltas(voted) == ("So 12 + 30 .", "It is 42 .")
        likely = (await chat(node, logprobs=True))["choices"][0]["logprobs"]["content"]
        assert "".join(t["token"] for t in likely) == "So 12 + 30 .\n</think>\n\nIt is 42 ."


async def test_thoughts_in_ollamas_words_and_in_those_of_responses() -> None:
    async with thinks("Hm .\n</think>\n\n42") as node:
        body = {"model": "fake", "messages": asked()["messages"]}
        whole = (await node.post("/api/chat", body | {"stream": False})).json["message"]
        assert (whole["thinking"], whole["content"]) == ("Hm .", "42")
        said = [json.loads(line)["message"] for line in (await node.post("/api/chat", body)).body.splitlines()]
        assert "".join(m.get("thinking", "") for m in said) == "Hm ."
        assert "".join(m["content"] for m in said) == "42"
        generated = (await node.post("/api/generate", {"model": "fake", "prompt": "hi", "stream": False})).json
        assert (generated["thinking"], generated["response"]) == ("Hm .", "42")
        made = (await node.post("/v1/responses", {"model": "fake", "input": "hi"})).json["output"]
        assert [(o["type"], o["content"][0]["text"]) for o in made] == [("reasoning", "Hm ."), ("message", "42")]
        events = (await node.post("/v1/responses", {"model": "fake", "input": "hi", "stream": True})).events
        assert "".join(e["delta"] for e in events if e["type"] == "response.reasoning_text.delta") == "Hm ."
        done = [e for e in events if e["type"] == "response.output_item.done"]
        assert [(e["output_index"], e["item"]["type"]) for e in done] == [(0, "reasoning"), (1, "message")]


async def test_candidates_agree_whatever_they_thought() -> None:
    answers = [f"{thought} answer: {i}\n</think>\n\nanswer: 42" for i, thought in enumerate(("Well", "Hm", "So"))]
    async with thinks(*answers) as node:
        for strategy in ("majority", "similarity"):
            vote = (await chat(node, model=f"conclave:{strategy}-9", conclave={"early_stop": "off"}))["conclave"]
            assert [c["count"] for c in vote["clusters"]] == [9]
            assert all(c["text"].startswith("<think>\n") for c in vote["candidates"]), "a text says where it begins"
        assert len({c["text"] for c in vote["candidates"]}) > 1


async def test_a_thought_that_is_cut_off_is_no_answer() -> None:
    async with thinks("answer: 7 " * 50) as node:
        made = await chat(node, model="conclave:majority-3", max_tokens=8)
        message = made["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"].startswith("answer: 7")) == ("", True)
        assert made["choices"][0]["finish_reason"] == "length"
        assert [c["key"] for c in made["conclave"]["clusters"]] == [""]


async def test_a_model_can_be_told_not_to_think() -> None:
    async with thinks("42") as node:
        for path, fields in (
            ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": False}}),
            ("/v1/chat/completions", {"reasoning_effort": "none"}),
            ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
            ("/api/chat", {"think": False, "stream": False}),
            ("/v1/messages", {"thinking": {"type": "disabled"}}),
        ):
            made = (await node.post(path, asked(model="fake", **fields))).json
            message = made["choices"][0]["message"] if "choices" in made else made.get("message", made)
            content = message["content"]
            assert (content if isinstance(content, str) else content[0].get("text")) == "42", (path, fields)
        told = {"chat_template_kwargs": {"enable_thinking": True}}
        message = (await chat(node, **told))["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("", "42")


async def test_a_call_that_is_thought_of_is_not_made() -> None:
    async with thinks(f"Perhaps {CALL % 1} ?\n</think>\n\n{CALL % 2}") as node:
        for more in ({}, {"model": "conclave:majority-3"}):
            message = (await chat(node, tools=[ADD], **more))["choices"][0]["message"]
            assert [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]] == [{"a": 2}]
            assert message["reasoning_content"].startswith("Perhaps <tool_call>")
        streamed = (await node.post("/v1/chat/completions", asked(model="fake", tools=[ADD], stream=True))).events
        calls = [c for e in streamed[:-1] for d in e["choices"] for c in d["delta"].get("tool_calls") or ()]
        assert [c["function"]["arguments"] for c in calls if c["function"]["arguments"]] == ['{"a": 2}']


async def test_the_next_turn_carries_no_thought_and_is_the_same_conversation() -> None:
    """What a client sends back without the thought is the held conversation; what is held of it is used as far as the
    thought began, and no further (`Thinker` compares)."""
    thought = "Let me see , that is long . " * 20
    async with thinks(f"{thought}\n</think>\n\n42") as node:
        first = await chat(node, topic="t")
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "42"}]
        messages.append({"role": "user", "content": "and then?"})
        second = await chat(node, topic="t", messages=messages)
        held = node.store.get("t").messages
        assert [m.role for m in held] == ["user", "assistant"] * 2
        assert all(m.content.startswith("<think>") for m in held if m.role == "assistant"), "nothing said is lost"
        assert [e.anew for e in node.store.log("t").entries] == [True, False]
        used = second["usage"]
        assert used["prompt_tokens"] < first["usage"]["prompt_tokens"] + 20
        assert 0 < used["prompt_tokens_details"]["cached_tokens"] < first["usage"]["prompt_tokens"]


HARMONY = """
{%- for m in messages %}
    {{- '<' + m.role + '>\\n' + m.content + '\\n</' + m.role + '>\\n' }}
{%- endfor %}
{{- '<|channel|>'[:0] + '<|start|>assistant' }}
"""
ANTHROPIC = {
    "model": "fake",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"name": "add", "input_schema": {"type": "object"}}],
}
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"


class Harmonic(FakeBackend):
    """A fake gpt-oss."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, format=Format.HARMONY)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        return ChatTemplate(HARMONY).render(messages, tools, think)


async def test_a_model_that_writes_harmony() -> None:
    answer = f"{ANALYSIS}So 12 + 30 .<|end|><|start|>assistant{FINAL}answer: 42"
    async with web(FakeSpec(answers=(answer,)), backend=Harmonic) as node:
        said = (await chat(node))["choices"][0]["message"]
        assert (said["reasoning_content"], said["content"]) == ("So 12 + 30 .", "answer: 42")
        for model in ("fake", "conclave"):
            streamed = await node.post("/v1/chat/completions", asked(model=model, stream=True))
            assert deltas(streamed) == ("So 12 + 30 .", "answer: 42")
        vote = (await chat(node, model="conclave:majority-3"))["conclave"]
        assert [c["key"] for c in vote["clusters"]] == ["42"]
        raw = (await node.post("/v1/completions", {"model": "fake", "prompt": "hi"})).json["choices"][0]["text"]
        assert raw == answer, "a text that is gone on with is left as it is"
    async with web(FakeSpec(answers=("42",)), backend=Harmonic) as node:
        assert (await chat(node, reasoning_effort="none"))["choices"][0]["message"]["content"] == "42"


async def test_calls_in_harmony() -> None:
    call = '<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a": 2}'
    async with web(FakeSpec(answers=(f"{ANALYSIS}Add .<|end|>{call}",)), backend=Harmonic) as node:
        for model in ("fake", "conclave:majority-3"):
            said = (await chat(node, tools=[ADD], model=model))["choices"][0]
            assert (said["finish_reason"], said["message"]["reasoning_content"]) == ("tool_calls", "Add .")
            [function] = [c["function"] for c in said["message"]["tool_calls"]]
            assert function == {"name": "add", "arguments": '{"a": 2}'}
            events = (await node.post("/v1/chat/completions", asked(model=model, tools=[ADD], stream=True))).events
            told = [c for e in events[:-1] for d in e["choices"] for c in d["delta"].get("tool_calls") or ()]
            assert "".join(c["function"]["arguments"] for c in told) == '{"a": 2}'
        blocks = (await node.post("/v1/messages", ANTHROPIC)).json["content"]
        assert [b["type"] for b in blocks] == ["thinking", "tool_use"]


async def test_what_is_thought_is_counted() -> None:
    async with thinks("So 12 + 30 .\n</think>\n\nIt is 42 .") as node:
        used = (await chat(node))["usage"]
        assert used["completion_tokens_details"] == {"reasoning_tokens": 5}
        assert used["completion_tokens"] > 5 + 3
        options = {"stream": True, "stream_options": {"include_usage": True}}
        last = (await node.post("/v1/chat/completions", asked(model="fake", **options))).events[-2]
        assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
        made = (await node.post("/v1/responses", {"model": "fake", "input": "hi"})).json["usage"]
        assert made["output_tokens_details"] == {"reasoning_tokens": 5}
    async with web() as node:
        assert (await chat(node))["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
