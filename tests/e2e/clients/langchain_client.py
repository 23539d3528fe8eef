"""LangChain's OpenAI client, unchanged: python langchain_client.py MODEL_URL ECHO_URL. Prints what it got as JSON."""

import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Sum(BaseModel):
    """Two numbers."""

    a: int
    b: int


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"sun in {city}"


def main(model_url, echo_url):
    real = ChatOpenAI(base_url=model_url, api_key="any", model="conclave-demo")
    vote = ChatOpenAI(base_url=model_url, api_key="any", model="conclave:majority-3")
    echo = ChatOpenAI(base_url=echo_url, api_key="any", model="fake", stream_usage=True)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
    answer = vote.invoke([SystemMessage("Be brief."), HumanMessage("What is 12 + 30?")])
    called = echo.bind_tools([weather]).invoke(call)
    pieces = list(real.stream("What is 12 + 30?"))
    embeddings = OpenAIEmbeddings(
        base_url=model_url, api_key="any", model="conclave-demo", check_embedding_ctx_length=False
    )
    found = {
        "vote": answer.content,
        "tokens": answer.usage_metadata["total_tokens"] > 0,
        "streamed": ["".join(p.content for p in pieces), len(pieces) > 3],
        "called": [[c["name"], c["args"]] for c in called.tool_calls],
        "ran": weather.invoke(called.tool_calls[0]["args"]),
        "structured": isinstance(real.with_structured_output(Sum).invoke("Add 2 and 3."), Sum),
        "batch": [m.content for m in echo.batch(["one", "two", "three"])],
        "vector": round(sum(x * x for x in embeddings.embed_query("red")), 3),
    }
    print(json.dumps(found))


main(*sys.argv[1:])
