"""What requests may say, in Anthropic's words. Fields that are not named here are ignored; null means "not said"."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from node.api.http import schema


class Block(Struct, kw_only=True):
    """A part of a message: text, a thought, a call that was made (tool_use), or what it gave (tool_result)."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None


class Message(Struct):
    """One message of a conversation. Results of calls are parts of a user's message."""

    role: str
    content: str | list[Block]


class Tool(Struct, kw_only=True):
    """A tool of the client. Those that Anthropic runs itself have another type."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class Choice(Struct, kw_only=True):
    """Which tool must be called: auto, any, none, or the tool of a name."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    """Whether the model thinks first: enabled, adaptive or disabled. For how long is its own affair."""

    type: str


class Output(Struct, kw_only=True):
    """What an answer must look like."""

    format: schema.Format | None = None


class CountRequest(Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: list[Message]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: schema.Limit | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=16)] | None = None
    temperature: schema.Temperature | None = None
    top_p: schema.Share | None = None
    top_k: schema.Count | None = None
    thinking: Thinking | None = None
    output_config: Output | None = None
    # Ours, as over OpenAI's API.
    topic: str | None = None
    conclave: schema.Conclave | None = None
