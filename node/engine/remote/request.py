"""What is sent to an OpenAI-compatible server. Pure.

What OpenAI's own API has is always sent; what only some servers know is sent as `extras`, which a server that is strict
refuses: then it is asked without them from there on (`Dialect`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from node.core import thoughts
from node.engine.job import Job
from node.errors import InvalidRequest
from node.types import Message, SamplingParams, Tool


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server understands beyond OpenAI's API: `extras` are samplers (top_k, min_p, repeat_penalty), `logprobs`
    that it gives log probabilities, `grammar` llama-server's field for GBNF."""

    extras: bool = True
    logprobs: bool = True
    grammar: bool = False


def path(job: Job) -> str:
    """Where a job is sent, below the server's /v1."""
    return "/completions" if job.is_raw else "/chat/completions"


def body(model: str, job: Job, seed: int, dialect: Dialect) -> dict[str, Any]:
    """The request for one candidate, streamed. Raises InvalidRequest for what this server cannot do."""
    params = job.params
    out: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": seed & 0x7FFFFFFF,  # some servers read a signed 32-bit number
    }
    if params.stop:
        out["stop"] = list(params.stop)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name):
            out[name] = getattr(params, name)
    if params.logit_bias:
        out["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    if dialect.extras:
        out |= _extras(params)
    if dialect.logprobs:
        out |= {"logprobs": params.top_logprobs} if job.is_raw else {"logprobs": True}
        if params.top_logprobs and not job.is_raw:
            out["top_logprobs"] = params.top_logprobs
    elif params.logprobs:
        raise InvalidRequest("this node's server gives no log probabilities: ask without them")
    if params.grammar:
        if not dialect.grammar:
            raise InvalidRequest("this node's server takes no GBNF grammar: ask with a JSON schema, or another node")
        out["grammar"] = params.grammar
    if params.json_schema:
        schema = json.loads(params.json_schema)
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    if job.is_raw:
        return out | {"prompt": job.messages[-1].content}
    out["messages"] = [_message(m) for m in job.messages]
    if job.tools:
        out["tools"] = [_tool(t) for t in job.tools]
    return out


def _extras(params: SamplingParams) -> dict[str, Any]:
    """Samplers by the names of llama-server and vLLM; what is off is left out."""
    out: dict[str, Any] = {}
    if params.top_k > 0:
        out["top_k"] = params.top_k
    if params.min_p > 0:
        out["min_p"] = params.min_p
    if params.repeat_penalty != 1.0:
        out |= {"repeat_penalty": params.repeat_penalty, "repetition_penalty": params.repeat_penalty}
    if params.ignore_eos:
        out["ignore_eos"] = True
    if params.think is not None:
        out["chat_template_kwargs"] = {"enable_thinking": params.think}
    return out


def _message(m: Message) -> dict[str, Any]:
    said = thoughts.answer(m.content) if m.role == "assistant" else m.content
    out: dict[str, Any] = {"role": m.role, "content": said}
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id or f"call_{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for i, c in enumerate(m.tool_calls)
        ]
    if m.role == "tool":
        out["tool_call_id"] = m.tool_call_id or "call_0"
    return out


def _tool(t: Tool) -> dict[str, Any]:
    function = {"name": t.name, "description": t.description, "parameters": json.loads(t.parameters or "{}")}
    return {"type": "function", "function": function}
