"""OpenAI's HTTP API over the coordinator of this process, and the page for people.

schema       what requests may say; what it does not name is ignored
names        model names, which carry how an answer is found
asked        a request of the API as a request of ours
deltas       the coordinator's events as pieces of choices
chat, completions, responses, embeddings    one endpoint each
tokens       texts and conversations as a model reads them
remembered   responses to go on from and to ask for again
ollama       the same in Ollama's words
anthropic    the same in Anthropic's words
wait         answers that take time: streamed or whole, ended when the client leaves
errors       OpenAI's error objects; the place where our errors meet HTTP's codes
guard        who may ask: API keys, and web pages of other sites
look         health, metrics, status, the page
openapi      the description of it all
gateway      the routes and the listener

Why these libraries: uvicorn and Starlette are what Python's own servers of this API run on (vLLM, llama-cpp-python);
msgspec reads and checks a request in one pass, says what is wrong in one line, and gives the schema for /openapi.json.
"""

from node.api.http.gateway import Gateway, bind

__all__ = ["Gateway", "bind"]
