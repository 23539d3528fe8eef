"""A request of Ollama's API as one of OpenAI's: what it means is decided there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from node.api.http import schema
from node.api.http.asked import no_text
from node.api.http.names import LATEST
from node.api.http.ollama.schema import ChatRequest, GenerateRequest, Message, Options
from node.errors import InvalidRequest


def model(name: str) -> str:
    """The name without the tag that Ollama's clients add to names that have none."""
    return name.removesuffix(LATEST)


def chat(body: ChatRequest) -> schema.ChatRequest:
    """A conversation. Raises InvalidRequest."""
    return schema.ChatRequest(
        messages=_messages(body.messages or []),
        tools=body.tools,
        max_tokens=_most(body.options),
        chat_template_kwargs=_thinks(body.think),
        **_common(body),
    )


def generate(body: GenerateRequest) -> schema.ChatRequest | schema.CompletionRequest:
    """A prompt: a conversation of one question, or a text to go on with (`raw`). Raises InvalidRequest."""
    for what, value in (("suffix", body.suffix), ("template", body.template), ("context", body.context)):
        if value:
            raise InvalidRequest(
                f"{what} is not known here: send a conversation to /api/chat, or all as it is with `raw`"
            )
    _text_only("prompt", body.images)
    said = _common(body)
    if body.raw:
        format = said.pop("response_format")
        if body.logprobs:
            said["logprobs"] = body.top_logprobs or 0
        else:
            said.pop("logprobs")
        said.pop("top_logprobs")
        plain = _schema(format) if format else None
        return schema.CompletionRequest(
            prompt=body.prompt or "", json_schema=plain, max_tokens=_most(body.options), **said
        )
    first = [schema.Message("system", body.system)] if body.system else []
    messages = [*first, schema.Message("user", body.prompt)]
    words = _thinks(body.think)
    return schema.ChatRequest(messages=messages, max_tokens=_most(body.options), chat_template_kwargs=words, **said)


def _common(body: ChatRequest | GenerateRequest) -> dict[str, Any]:
    o = body.options or Options()
    return {
        "model": model(body.model),
        "temperature": o.temperature,
        "top_p": o.top_p,
        "top_k": o.top_k,
        "min_p": o.min_p,
        "seed": o.seed,
        "stop": o.stop,
        "repeat_penalty": o.repeat_penalty,
        "presence_penalty": o.presence_penalty,
        "frequency_penalty": o.frequency_penalty,
        "response_format": _format(body.format),
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "topic": body.topic,
        "conclave": body.conclave,
    }


def _thinks(think: bool | str | None) -> schema.TemplateWords:
    return schema.TemplateWords(None if think is None else bool(think))


def _most(options: Options | None) -> int | None:
    most = options.num_predict if options else None
    return -1 if most == -2 else most


def _format(format: str | dict[str, Any] | None) -> schema.Format | None:
    if not format:
        return None
    if isinstance(format, dict):
        return schema.Format("json_schema", schema=format)
    if format != "json":
        raise InvalidRequest(f'format is {format[:40]!r}: it must be "json" or a JSON schema')
    return schema.Format("json_object")


def _schema(format: schema.Format) -> dict[str, Any]:
    return format.schema if format.schema is not None else {"type": "object"}


def _messages(said: Sequence[Message]) -> list[schema.Message]:
    """Messages with ids for their calls: Ollama's have none, so a result belongs to the first call of its function
    that has no result yet, or to the first at all."""
    out: list[schema.Message] = []
    open_calls: list[tuple[str, str]] = []  # id and function
    for number, m in enumerate(said):
        _text_only(f"messages[{number}]", m.images)
        calls = [
            schema.ToolCall(
                schema.Function(c.function.name, arguments=json.dumps(c.function.arguments)),
                c.id or f"call_{len(out)}_{i}",
            )
            for i, c in enumerate(m.tool_calls or [])
        ]
        id = m.tool_call_id
        if calls:
            open_calls = [(str(c.id), c.function.name) for c in calls]
        elif m.role == "tool" and not id and open_calls:
            found = next((c for c in open_calls if c[1] == m.tool_name), open_calls[0])
            open_calls.remove(found)
            id = found[0]
        out.append(schema.Message(m.role, m.content, calls or None, id, m.thinking))
    return out


def _text_only(where: str, images: list[Any] | None) -> None:
    if images:
        raise no_text(where, "image")
