"""LiteLLM, unchanged: python litellm_client.py MODEL_URL ECHO_URL. Prints what it got as JSON."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices otherwise

import litellm

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def ask(text):
    return [{"role": "user", "content": text}]


def main(model_url, echo_url):
    real = {"api_base": model_url, "api_key": "any"}
    echo = {"api_base": echo_url, "api_key": "any"}
    vote = litellm.completion(model="openai/conclave:majority-3", messages=ask("What is 12 + 30?"), **real)
    chunks = list(
        litellm.completion(model="openai/conclave-demo", messages=ask("What is 12 + 30?"), stream=True, **real)
    )
    called = litellm.completion(
        model="openai/fake", messages=ask(CALL), tools=[{"type": "function", "function": FUNCTION}], **echo
    )
    try:
        litellm.completion(model="openai/gpt-4o", messages=ask("x"), num_retries=0, **echo)
        error = "none"
    except litellm.NotFoundError as e:
        error = [type(e).__name__, "does not exist here" in str(e)]
    vectors = litellm.embedding(model="openai/conclave-demo", input=["red"], **real)
    found = {
        "vote": vote.choices[0].message.content,
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks),
        "called": called.choices[0].message.tool_calls[0].function.name,
        "error": error,
        "vector": round(sum(x * x for x in vectors.data[0]["embedding"]), 3),
    }
    print(json.dumps(found))


main(*sys.argv[1:])
