"""Another engine as this node's: any server with OpenAI's HTTP API (llama-server, vLLM, Ollama, LM Studio).

options   where the server is
request   what is sent: pure
stream    what comes back, as it comes: pure
server    the connections, and their errors in our words
engine    jobs as requests, with the same face as the local engine's
"""

from __future__ import annotations

from node.engine.remote.engine import RemoteEngine
from node.engine.remote.options import RemoteOptions, options

__all__ = ["RemoteEngine", "RemoteOptions", "options"]
