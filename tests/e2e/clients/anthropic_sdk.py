"""Anthropic's client for Python, unchanged, against a node. Takes the URLs of two nodes; prints JSON."""

import asyncio
import json
import sys

from anthropic import Anthropic, APIStatusError, AsyncAnthropic

llama, fake = (Anthropic(base_url=url.removesuffix("/v1"), api_key="anything") for url in sys.argv[1:])
SUM = [{"role": "user", "content": "What is 12 + 30?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
WEATHER = {
    "name": "weather",
    "description": "Tell the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Bonn", "Cologne"]}}, "required": ["city"]},
}


def ask(client, model, messages=SUM, **fields):
    return client.messages.create(model=model, messages=messages, **({"max_tokens": 64} | fields))


def fails(client, model, messages=SUM, **fields):
    try:
        ask(client.with_options(max_retries=0), model, messages, **fields)
    except APIStatusError as e:
        return [e.status_code, type(e).__name__, e.body["type"], e.body["error"]["type"]]
    return None


found = {"models": [m.id for m in llama.models.list()]}
vote = ask(llama, "conclave:majority-5", system="Be brief.")
found["vote"] = [bool(vote.content[0].text), vote.stop_reason, vote.usage.output_tokens > 0]
found["outcome"] = vote.model_extra["conclave"]["planned"]
with llama.messages.stream(model="conclave-demo", max_tokens=64, messages=SUM) as stream:
    pieces = list(stream.text_stream)
    last = stream.get_final_message()
found["stream"] = [
    last.content[0].text == "".join(pieces),
    2 < len(pieces) <= last.usage.output_tokens,
    last.stop_reason,
]
sampled = {"temperature": 0, "top_p": 0.9, "top_k": 5}  # this version of the client has no words for these
found["cut"] = ask(fake, "fake", max_tokens=1, stop_sequences=["never"], extra_body=sampled).stop_reason
stopped = ask(fake, "fake", stop_sequences=["is", "never"])
found["stopped"] = [stopped.stop_reason, stopped.stop_sequence]


async def meanwhile():
    async with AsyncAnthropic(base_url=str(fake.base_url), api_key="any") as client:
        async with client.messages.stream(model="fake", max_tokens=64, messages=SUM, stop_sequences=["12"]) as stream:
            pieces = [text async for text in stream.text_stream]
            end = await stream.get_final_message()
        return ["".join(pieces) == end.content[0].text, end.stop_reason, end.stop_sequence]


found["async"] = asyncio.run(meanwhile())
schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
fits = ask(llama, "conclave-demo", max_tokens=1500, output_config={"format": {"type": "json_schema", "schema": schema}})
found["structured"] = list(json.loads(fits.content[0].text))

asked = [{"role": "user", "content": CALL}]
called = ask(fake, "fake", asked, tools=[WEATHER], tool_choice={"type": "auto"})
call = called.content[-1]  # after "echo:"
found["called"] = [call.type, call.name, call.input, called.stop_reason]
with fake.messages.stream(model="fake", max_tokens=64, messages=asked, tools=[WEATHER]) as stream:
    found["streamed"] = [[b.name, b.input] for b in stream.get_final_message().content[1:]]
result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun in Bonn"}
turn = [*asked, {"role": "assistant", "content": called.content}]
found["after"] = (
    ask(fake, "fake", [*turn, {"role": "user", "content": [result, {"type": "text", "text": "thanks"}]}])
    .content[0]
    .text
)
forced = ask(llama, "conclave-demo", tools=[WEATHER], tool_choice={"type": "any"})
found["forced"] = [[b.name, list(b.input)] for b in forced.content]

counted = fake.messages.count_tokens(model="fake", messages=SUM, system="Be brief.", tools=[WEATHER])
found["counted"] = counted.input_tokens > 5
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
found["errors"] = [
    fails(fake, "claude-opus"),
    fails(fake, "fake", [{"role": "user", "content": [image]}]),
    fails(llama, "conclave-demo", [{"role": "user", "content": "w " * 9000}]),
]
with fake.messages.stream(model="fake", max_tokens=64, messages=SUM) as stream:
    next(iter(stream))
found["left"] = True
print(json.dumps(found))
