"""Ollama's HTTP API (https://github.com/ollama/ollama/blob/main/docs/api.md), for programs that speak nothing else.

The same requests of ours, in other words: a model's tag carries how an answer is found, as `conclave:majority` does.

schema   what requests may say; what it does not name is ignored
asked    a request of Ollama's API as one of OpenAI's, which `node.api.http.asked` reads
answers  chat and generate: a JSON object a line, or one
look     which models there are, and embeddings
"""

from node.api.http.ollama.answers import Answers
from node.api.http.ollama.look import UNSERVED, Look
from node.api.http.ollama.say import refused

__all__ = ["UNSERVED", "Answers", "Look", "refused"]
