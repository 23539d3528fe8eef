"""The official Python client, unchanged: python openai_sdk.py MODEL_URL ECHO_URL. Prints what it got as JSON.

MODEL_URL is a node with the bundled model, ECHO_URL one that says "echo: " and the last message.
"""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel


class Sum(BaseModel):
    a: int
    b: int


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# Of two: what else this small model might write between the quotes need not end before its context does.
CITIES = PARAMETERS | {"properties": {"city": {"enum": ["Bonn", "Rome"]}}}
FUNCTION = {"name": "weather", "description": "tells the weather", "parameters": PARAMETERS}


def ask(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def chat(real, echo):
    found = {}
    vote = real.chat.completions.create(model="conclave:majority-5", messages=ask("What is 12 + 30?"), seed=7)
    found["vote"] = [vote.choices[0].message.content, vote.conclave["planned"], vote.usage.total_tokens]
    stream = real.chat.completions.create(
        model="conclave-demo", messages=ask("What is 12 + 30?"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    found["stream"] = [
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        sum(bool(c.choices and c.choices[0].delta.content) for c in chunks),
        chunks[-1].usage.completion_tokens,
        next(c.choices[0].finish_reason for c in reversed(chunks) if c.choices),
    ]
    several = echo.chat.completions.create(model="fake", messages=ask("hello"), n=3, max_completion_tokens=2)
    found["several"] = [[c.message.content, c.finish_reason] for c in several.choices]
    parsed = real.chat.completions.parse(model="conclave", messages=ask("Add 2 and 3."), response_format=Sum)
    found["parsed"] = isinstance(parsed.choices[0].message.parsed, Sum)
    forced = real.chat.completions.create(
        model="conclave-demo",
        messages=ask("How is the weather in Bonn?"),
        tools=[{"type": "function", "function": FUNCTION | {"parameters": CITIES}}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    [call] = forced.choices[0].message.tool_calls
    found["forced"] = [call.function.name, sorted(json.loads(call.function.arguments)), forced.choices[0].finish_reason]
    return found


def tools(echo):
    wanted = {"model": "fake", "messages": ask(CALL), "tools": [{"type": "function", "function": FUNCTION}]}
    message = echo.chat.completions.create(**wanted).choices[0].message
    with echo.chat.completions.stream(**wanted) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message
    after = [*wanted["messages"], message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}]
    last = echo.chat.completions.create(model="fake", messages=after, tools=wanted["tools"])
    return {
        "called": [m.tool_calls[0].function.name + m.tool_calls[0].function.arguments for m in (message, streamed)],
        "after": last.choices[0].finish_reason,
    }


def responses(real, echo):
    first = echo.responses.create(model="fake", input="hello", instructions="Be brief.")
    second = echo.responses.create(model="fake", input="again", previous_response_id=first.id)
    with real.responses.stream(model="conclave-demo", input="What is 12 + 30?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    function = {"type": "function", "strict": False, **FUNCTION}
    called = echo.responses.create(model="fake", input=CALL, tools=[function])
    parsed = real.responses.parse(model="conclave", input="Add 2 and 3.", text_format=Sum)
    again = echo.responses.retrieve(second.id)
    items = [i.content[0].text for i in echo.responses.input_items.list(second.id, order="asc")]
    echo.responses.delete(second.id)
    try:
        echo.responses.retrieve(second.id)
    except openai.NotFoundError:
        items.append("gone")
    return {
        "kept": [again.output_text == second.output_text, again.id == second.id, *items],
        "texts": [first.output_text, second.output_text, second.previous_response_id == first.id],
        "kinds": [kinds[0], kinds[-1], kinds.count("response.output_text.delta") > 1],
        "final": final.output_text,
        "calls": [[i.name, i.arguments] for i in called.output if i.type == "function_call"],
        "parsed": isinstance(parsed.output_parsed, Sum),
    }


def errors(echo):
    found = []
    for kind, wanted in (
        (openai.NotFoundError, {"model": "gpt-4o", "messages": ask("x")}),
        (openai.BadRequestError, {"model": "fake", "messages": ask("")}),
        (openai.BadRequestError, {"model": "fake", "messages": ask("w " * 9000)}),
    ):
        try:
            echo.chat.completions.create(**wanted)
        except kind as e:
            found.append([e.status_code, e.type, e.code, bool(e.body["message"])])
    return found


async def left(url):
    """Leave a stream in the middle, as an agent that has seen enough does."""
    async with openai.AsyncOpenAI(base_url=url, api_key="any") as client:
        stream = await client.chat.completions.create(
            model="conclave-demo", messages=ask("What is 12 + 30?"), stream=True
        )
        async for _ in stream:
            await stream.close()
            return True


def main(model_url, echo_url):
    real = openai.OpenAI(base_url=model_url, api_key="any")
    echo = openai.OpenAI(base_url=echo_url, api_key="any", max_retries=0)
    vectors = real.embeddings.create(model="conclave-demo", input=["red", "blue"]).data
    completion = echo.completions.create(model="fake", prompt="once", max_tokens=3)
    found = {
        "models": [m.id for m in real.models.list()],
        "model": echo.models.retrieve("conclave:majority-9").id,
        "vectors": [round(sum(x * x for x in v.embedding), 3) for v in vectors],
        "completion": completion.choices[0].text,
        "errors": errors(echo),
        "left": asyncio.run(left(model_url)),
        **chat(real, echo),
        **tools(echo),
        "responses": responses(real, echo),
    }
    print(json.dumps(found))


main(*sys.argv[1:])
