"""Anthropic's Messages API (https://platform.claude.com/docs/en/api/messages), for programs that speak nothing else.

The same requests of ours, in other words, as `node.api.http.ollama` is.

schema    what requests may say; what it does not name is ignored
asked     a request of Anthropic's API as one of OpenAI's, which `node.api.http.asked` reads
messages  answers, whole or as events, and counts of tokens
say       events and errors
"""

from node.api.http.anthropic.messages import Messages
from node.api.http.anthropic.say import refused

__all__ = ["Messages", "refused"]
