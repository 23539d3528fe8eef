"""A request of Anthropic's API as one of OpenAI's: what it means is decided there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from node.api.http import schema
from node.api.http.anthropic.schema import Block, Choice, CountRequest, Message, MessagesRequest, Tool
from node.api.http.asked import no_text
from node.errors import InvalidRequest

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat(body: MessagesRequest) -> schema.ChatRequest:
    """A conversation to be answered. Raises InvalidRequest."""
    said = conversation(body)
    choice = body.tool_choice
    said.tool_choice = _choice(choice) if choice else None
    said.parallel_tool_calls = False if choice and choice.disable_parallel_tool_use else None
    said.max_tokens, said.stop = body.max_tokens, body.stop_sequences
    said.temperature, said.top_p, said.top_k = body.temperature, body.top_p, body.top_k
    said.chat_template_kwargs = schema.TemplateWords(body.thinking.type != "disabled") if body.thinking else None
    said.response_format = body.output_config.format if body.output_config else None
    said.topic, said.conclave = body.topic, body.conclave
    return said


def conversation(body: CountRequest) -> schema.ChatRequest:
    """What is said and which tools there are. Raises InvalidRequest.

    A system message among the others, as Claude Code sends, is read as the user's: models' templates have none there.
    """
    system = [schema.Message("system", _text("system", body.system))] if body.system else []
    messages: list[schema.Message] = []
    for i, said in enumerate(body.messages):
        for m in _messages(f"messages[{i}]", said):
            if m.role != "system":
                messages.append(m)
            elif messages and messages[-1].role == "user":
                messages[-1].content = f"{messages[-1].content}\n\n{m.content}"
            else:
                messages.append(schema.Message("user", m.content))
    tools = [_tool(i, t) for i, t in enumerate(body.tools or [])] or None
    return schema.ChatRequest(model=body.model, messages=[*system, *messages], tools=tools)


def _messages(where: str, said: Message) -> Iterator[schema.Message]:
    """One message as one or several: each result of a call is one of its own, and stands before what the user says."""
    if isinstance(said.content, str):
        yield schema.Message(said.role, said.content)
        return
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[schema.ToolCall] = []
    for i, block in enumerate(said.content):
        at = f"{where}.content[{i}]"
        if block.type == "tool_result":
            yield schema.Message("tool", _text(f"{at}.content", block.content), tool_call_id=block.tool_use_id)
        elif block.type == "tool_use":
            made = schema.Function(block.name or "", arguments=json.dumps(block.input or {}))
            calls.append(schema.ToolCall(made, block.id))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(_text(at, [block]))
    if texts or calls or thoughts or not said.content:
        thought = "\n".join(thoughts) or None
        yield schema.Message(said.role, "\n".join(texts), calls or None, reasoning_content=thought)


def _text(where: str, said: str | Sequence[Block] | None) -> str:
    """The text of a content. Raises InvalidRequest for anything but text."""
    if said is None or isinstance(said, str):
        return said or ""
    for block in said:
        if block.type != "text":
            raise no_text(where, block.type)
    return "\n".join(block.text or "" for block in said)


def _tool(i: int, tool: Tool) -> schema.Tool:
    if tool.type not in (None, "custom"):
        raise InvalidRequest(f"tools[{i}].type is {tool.type[:40]!r}: only tools that the client runs are known here")
    return schema.Tool(function=schema.Function(tool.name, tool.description, tool.input_schema))


def _choice(choice: Choice) -> str | schema.Choice:
    if choice.type == "tool":
        return schema.Choice(name=choice.name)
    if choice.type not in _CHOICES:
        raise InvalidRequest(f"tool_choice.type is {choice.type[:40]!r}: it must be auto, any, none or tool")
    return _CHOICES[choice.type]
