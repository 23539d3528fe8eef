"""Ollama's client for Python, unchanged, against a node. Takes the URLs of two nodes; prints what came back as JSON."""

import json
import sys

from ollama import Client, ResponseError

llama, fake = (Client(host=url.removesuffix("/v1")) for url in sys.argv[1:])
SUM = [{"role": "user", "content": "What is 12 + 30?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return f"sun in {city}"


def fails(call, *arguments, **fields):
    try:
        call(*arguments, **fields)
    except ResponseError as e:
        return [e.status_code, e.error]
    return None


found = {"models": [m.model for m in llama.list().models]}
details = llama.list().models[0].details
shown = llama.show("conclave:majority")
found["shown"] = [
    details.family,
    details.quantization_level,
    shown.capabilities,
    shown.modelinfo["qwen3.context_length"],
]
found["running"] = [m.model for m in llama.ps().models]
found["loaded"] = [fake.generate("fake", "").done_reason, fake.chat("fake", keep_alive=0).done_reason]

vote = llama.chat("conclave", SUM)
found["vote"] = [bool(vote.message.content), vote.done_reason, vote.prompt_eval_count > 0, vote.eval_count > 0]
parts = list(llama.chat("conclave-demo:latest", SUM, stream=True, logprobs=True, top_logprobs=2))
last = parts[-1]
found["stream"] = [
    "".join(p.message.content for p in parts) != "",
    2 < len(parts) <= last.eval_count + 1,
    [p.done for p in parts[-2:]],
    len(parts[0].logprobs[0].top_logprobs),
]
found["cut"] = fake.chat("fake", SUM, options={"num_predict": 2, "temperature": 0, "stop": ["never"]}).done_reason
found["generated"] = fake.generate("fake", "hello", system="Be brief.").response
found["raw"] = fake.generate("fake", "hello", raw=True).prompt_eval_count
schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
found["structured"] = list(json.loads(llama.generate("conclave-demo", "a", format=schema).response))

called = fake.chat("fake", [{"role": "user", "content": CALL}], tools=[weather]).message
found["called"] = [[c.function.name, c.function.arguments] for c in called.tool_calls]
result = {"role": "tool", "tool_name": "weather", "content": weather(**called.tool_calls[0].function.arguments)}
found["after"] = fake.chat("fake", [*SUM, called, result, {"role": "user", "content": "thanks"}]).message.content

vectors = fake.embed("fake", ["a", "a", "b"]).embeddings
found["vectors"] = [len(vectors), vectors[0] == vectors[1], fake.embeddings("fake", "a").embedding == vectors[0]]
found["errors"] = [
    fails(fake.chat, "nope", SUM),
    fails(fake.pull, "llama3"),
    fails(fake.chat, "fake", [{"role": "user", "content": "x", "images": [b"abc"]}]),
    fails(fake.chat, "fake", SUM, options={"temperature": 99}),
]
stream = fake.chat("fake", SUM, stream=True)
next(iter(stream))
stream.close()
found["left"] = True
print(json.dumps(found))
