"""A request of the API as a request of ours. What values mean is checked by `node.wire`, as it is for gRPC."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from node import wire
from node.api.http import names, schema
from node.coordinator import NO_WISHES, Wishes
from node.core import thoughts
from node.errors import InvalidRequest
from node.types import EarlyStop, GenerateRequest, Message, Scope
from node.v1 import generate_pb2, types_pb2

# Tokens of an answer when the request does not say: enough for a file of code, and few enough that the worst case,
# which is what a sequence's room is reserved for, leaves room for others.
DEFAULT_MAX_TOKENS = 2048
MAX_PROMPTS = 64  # texts of one request for completions
_SAID = (
    *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    "ignore_eos",
)
# What a model would need for parts of these types, in whichever API's words.
_SENSES = {
    **{"image": "vision", "video": "vision", "audio": "hearing"},
    **{"file": "reader of files", "document": "reader of files"},
}
_ROLES = {"developer": "system", "function": "tool"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what its answer must look like. `choices` are the answers wanted; `is_vote` says whether they are
    what a vote decided (then the winner is first) or each candidate's own."""

    request: GenerateRequest
    model: str
    choices: int = 1
    is_vote: bool = True
    events: bool = False
    include_usage: bool = False
    wishes: Wishes = NO_WISHES
    one_call: bool = False  # parallel_tool_calls is false


@dataclass(frozen=True, slots=True)
class Node:
    """What reading a request takes from the node: its model's name, what requests leave out, others' models."""

    model: str
    defaults: wire.Defaults
    others: Collection[str] = ()


def chat(body: schema.ChatRequest, node: Node, request_id: str = "") -> Asked:
    """A chat completion. Raises ConclaveError."""
    choice = body.tool_choice
    tools = tools_pb(body.tools or [])
    params = _params(body, body.max_completion_tokens or body.max_tokens, body.stop)
    params.json_schema = _schema(body.response_format, body.json_schema)
    params.logprobs, params.top_logprobs = bool(body.logprobs), body.top_logprobs or 0
    if body.reasoning_effort == "none":
        params.think = False
    if body.chat_template_kwargs and body.chat_template_kwargs.enable_thinking is not None:
        params.think = body.chat_template_kwargs.enable_thinking
    forced = _forced(choice, tools)
    if forced and not params.json_schema:
        params.json_schema = forced
    pb = generate_pb2.GenerateRequest(
        messages=[message_pb(i, m) for i, m in enumerate(body.messages)],
        tools=[] if choice == "none" else tools,
        params=params,
    )
    made = _asked(body, pb, node, body.n or 1, request_id)
    return replace(
        made,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        one_call=body.parallel_tool_calls is False,
    )


def completion(body: schema.CompletionRequest, prompt: str, node: Node, request_id: str = "") -> Asked:
    """A text to go on with, as it stands: no template, this node alone. Raises ConclaveError."""
    if not prompt:
        raise InvalidRequest("the prompt is empty: send some text to go on with")
    if body.suffix:
        raise InvalidRequest(
            "suffix is not known here: send one text, with the model's own marks for what is to be filled in"
        )
    params = _params(body, body.max_tokens, body.stop)
    params.json_schema = json.dumps(body.json_schema) if body.json_schema is not None else ""
    params.logprobs, params.top_logprobs = body.logprobs is not None, body.logprobs or 0
    pb = generate_pb2.GenerateRequest(messages=[types_pb2.Message(role="user", content="-")], params=params)
    made = _asked(body, pb, node, body.n or 1, request_id)
    request = replace(made.request, messages=(Message("user", prompt),), is_raw=True, scope=Scope.LOCAL)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return replace(made, request=request, include_usage=usage)


def responses(
    body: schema.ResponsesRequest, before: Sequence[types_pb2.Message], node: Node, request_id: str = ""
) -> tuple[Asked, list[types_pb2.Message]]:
    """A response after `before`, the conversation so far; with the conversation as it is then. Raises ConclaveError."""
    said = [*before, *items_pb(body.input)]
    first = [types_pb2.Message(role="system", content=body.instructions)] if body.instructions else []
    tools = tools_pb(body.tools or [])
    params = _params(body, body.max_output_tokens, None)
    params.json_schema = _schema(body.text.format if body.text else None, None) or _forced(body.tool_choice, tools)
    pb = generate_pb2.GenerateRequest(
        messages=first + said, tools=[] if body.tool_choice == "none" else tools, params=params
    )
    made = _asked(body, pb, node, 1, request_id)
    return replace(made, one_call=body.parallel_tool_calls is False), said


def items_pb(input: str | Sequence[schema.Item]) -> list[types_pb2.Message]:
    """Input items as messages; calls that follow each other are of one message. Raises InvalidRequest."""
    if isinstance(input, str):
        return [types_pb2.Message(role="user", content=input)]
    out: list[types_pb2.Message] = []
    for i, item in enumerate(input):
        where = f"input[{i}]"
        if item.type == "message":
            role = item.role or ""
            text = content(f"{where}.content", item.content)
            out.append(types_pb2.Message(role=_ROLES.get(role, role), content=text))
        elif item.type == "function_call":
            call = types_pb2.ToolCall(id=item.call_id or "", name=item.name or "", arguments=item.arguments or "{}")
            if not out or out[-1].role != "assistant":
                out.append(types_pb2.Message(role="assistant"))
            out[-1].tool_calls.append(call)
        elif item.type == "function_call_output":
            text = content(f"{where}.output", item.output)
            out.append(types_pb2.Message(role="tool", content=text, tool_call_id=item.call_id or ""))
        elif item.type != "reasoning":  # what a model thought before is not shown to it again
            raise InvalidRequest(f"{where}.type is {item.type[:40]!r}: this node takes messages and function calls")
    return out


def prompts(asked: str | Sequence[str | int | list[int]], piece: Any) -> list[str]:
    """The texts of `prompt` or `input`, which may be tokens; `piece` gives a token's bytes. Raises InvalidRequest."""

    def text(tokens: Sequence[object]) -> str:
        try:
            return b"".join(piece(t) for t in tokens).decode(errors="replace")
        except (IndexError, OverflowError, TypeError, ValueError, KeyError):
            raise InvalidRequest(
                "a token is none of this model's: send texts, or tokens from its own vocabulary"
            ) from None

    if isinstance(asked, str):
        return [asked]
    if asked and all(isinstance(a, int) for a in asked):
        return [text(asked)]
    if any(isinstance(a, int) for a in asked):
        raise InvalidRequest("a list holds texts, or tokens, not both")
    return [a if isinstance(a, str) else text(a) for a in asked]  # type: ignore[arg-type]


def message_pb(i: int, m: schema.Message) -> types_pb2.Message:
    """One message. Raises InvalidRequest."""
    said = content(f"messages[{i}].content", m.content)
    return types_pb2.Message(
        role=_ROLES.get(m.role, m.role),
        content=thoughts.joined(m.reasoning_content or "", said) if m.role == "assistant" else said,
        tool_calls=[
            types_pb2.ToolCall(id=c.id or "", name=c.function.name, arguments=c.function.arguments or "{}")
            for c in m.tool_calls or []
        ],
        tool_call_id=m.tool_call_id or "",
    )


def content(where: str, said: str | list[schema.Part] | None) -> str:
    """The text of a content; parts are joined as they are. Raises InvalidRequest for anything but text."""
    if said is None or isinstance(said, str):
        return said or ""
    for part in said:
        if part.text is None and part.refusal is None:
            raise no_text(where, part.type)
    return "".join(part.text or part.refusal or "" for part in said)


def no_text(where: str, kind: str) -> InvalidRequest:
    """Why a part of a content is refused: what a node has not, by what the part is."""
    word = kind[:40].lower()
    of = next((s for s in _SENSES if s in word), "")
    lacks = _SENSES[of] if of else "way to read it"
    return InvalidRequest(
        f"{where} has a part of type {kind[:40]!r}, and models have no {lacks} on this node: send text only"
    )


def tools_pb(tools: Sequence[schema.Tool]) -> list[types_pb2.Tool]:
    """Tools in either spelling. Raises InvalidRequest for what is no function."""
    out = []
    for i, tool in enumerate(tools):
        said = tool.function or schema.Function(tool.name or "", tool.description, tool.parameters)
        if tool.type != "function":
            raise InvalidRequest(f"tools[{i}].type is {tool.type[:40]!r}: only function tools are known here")
        parameters = json.dumps(said.parameters) if said.parameters is not None else ""
        out.append(types_pb2.Tool(name=said.name, description=said.description or "", parameters=parameters))
    return out


def _asked(body: schema.Sampling, pb: generate_pb2.GenerateRequest, node: Node, n: int, request_id: str) -> Asked:
    mode = names.mode(body.model or "", node.model, node.others)
    more = body.conclave or schema.Conclave()
    pb.topic = body.topic or ""
    pb.request_id = request_id
    pb.model = mode.model
    pb.strategy = more.strategy or (mode.strategy.value if mode.strategy else "")
    pb.candidates = more.candidates or mode.candidates
    if mode.is_vote and n > 1:
        pb.candidates = max(pb.candidates, n)
    if not mode.is_vote and not more.candidates:
        pb.candidates = n
    request = wire.generate_request(pb, node.defaults)
    early: EarlyStop | None = _one_of(EarlyStop, "conclave.early_stop", more.early_stop)
    scope: Scope | None = _one_of(Scope, "conclave.scope", more.scope)
    if n > 1 and early is None:
        early = EarlyStop.OFF  # whoever wants n answers gets them
    request = replace(request, early_stop=early, scope=scope or request.scope)
    if not mode.is_vote:
        # No vote: by which strategy nothing is counted does not matter, so the one that costs nothing.
        strategy = request.strategy if more.strategy else wire.strategy("majority")
        request = replace(request, strategy=strategy, scope=request.scope if mode.model else Scope.LOCAL)
    # What another node's model writes is the answer itself, and wanted as it is written.
    wishes = Wishes(bool(more.progress), bool(more.leader), bool((more.events and more.peers) or mode.model))
    return Asked(request, body.model or names.VOTE, n, mode.is_vote, bool(more.events), wishes=wishes)


def _one_of(kind: Any, what: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{what} is {text[:40]!r}: it must be one of {', '.join(kind)}") from None


def _params(body: schema.Sampling, max_tokens: int | None, stop: schema.Stops | None) -> types_pb2.SamplingParams:
    """How candidates are sampled: what is said, and nothing else."""
    if max_tokens == 0:
        raise InvalidRequest("max_tokens is 0: an answer needs at least one token")
    limit = DEFAULT_MAX_TOKENS if max_tokens is None else 2**31 - 1 if max_tokens < 0 else max_tokens
    params = types_pb2.SamplingParams(max_tokens=limit, grammar=body.grammar or "")
    for field in _SAID:
        value = getattr(body, field)
        if value is not None:
            setattr(params, field, value)
    if body.top_p == 0:
        params.top_k, params.top_p = 1, 1.0  # OpenAI allows 0, and means the best token
    if body.seed is not None:
        params.seed = body.seed % 2**64
    for token, bias in (body.logit_bias or {}).items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise InvalidRequest(f"logit_bias names {token[:40]!r}: it must be the number of a token")
        params.logit_bias[int(token)] = bias
    params.stop.extend([stop] if isinstance(stop, str) else stop or [])
    return params


def _schema(format: schema.Format | None, plain: dict[str, Any] | None) -> str:
    """The JSON schema that an answer must fit, as text; empty for none. Raises InvalidRequest."""
    if format is None or format.type == "text":
        return json.dumps(plain) if plain is not None else ""
    if format.type == "json_object":
        return json.dumps(format.schema if format.schema is not None else {"type": "object"})
    if format.type == "json_schema":
        found = format.json_schema.schema if format.json_schema else format.schema
        if found is None:
            raise InvalidRequest("response_format is json_schema and has no schema: send json_schema.schema")
        return json.dumps(found)
    raise InvalidRequest(f"response_format.type is {format.type[:40]!r}: it must be text, json_object or json_schema")


def _forced(choice: str | schema.Choice | None, tools: Sequence[types_pb2.Tool]) -> str:
    """A schema for a call that must be made (`node.core.tools` reads a bare call too); empty if none must be."""
    if choice is None or choice in ("none", "auto"):
        return ""
    if isinstance(choice, str):
        if choice != "required":
            raise InvalidRequest(f"tool_choice is {choice[:40]!r}: it must be none, auto, required or a function")
        wanted = list(tools)
    else:
        name = choice.function.name if choice.function else choice.name
        wanted = [t for t in tools if t.name == name]
        if not wanted:
            raise InvalidRequest(f"tool_choice names {str(name)[:80]!r}, which is none of the tools")
    if not wanted:
        raise InvalidRequest(f"tool_choice is {choice!r} and there are no tools")
    return json.dumps({"anyOf": [_call_schema(t) for t in wanted]} if len(wanted) > 1 else _call_schema(wanted[0]))


def _call_schema(tool: types_pb2.Tool) -> dict[str, Any]:
    try:
        arguments = json.loads(tool.parameters or "{}")
    except ValueError:  # wire.tools says so to the user
        arguments = {}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments or {"type": "object"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
