"""The chat template: as Jinja for the GGUF, and the same in Python with the trained parts marked."""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # control tokens; <|im_end|> ends a turn
MARKUP = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")  # one token each

_BEFORE_TOOLS = "# Tools\nCall a listed tool if it fits:\n<tools>"
_AFTER_TOOLS = '\n</tools>\nTo call: <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'

TEMPLATE = """\
{%- set rest = messages -%}
{%- set ns = namespace(system='') -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set ns.system = messages[0].content -%}
{%- set rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}
{{- BEFORE -}}
{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- AFTER + '<|im_end|>\\n' -}}
{%- elif ns.system -%}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in rest -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or rest[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or rest[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function if call.function else call -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{%- if function.arguments is string -%}{{- function.arguments -}}
{%- else -%}{{- function.arguments | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".replace("BEFORE", repr(_BEFORE_TOOLS)).replace("AFTER", repr(_AFTER_TOOLS))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def segments(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> list[tuple[str, bool]]:
    """The rendered conversation as (text, trained) pieces; trained are the assistant's words and their end mark."""
    out: list[tuple[str, bool]] = []
    system, rest = "", messages
    if messages and messages[0]["role"] == "system":
        system, rest = messages[0]["content"], messages[1:]
    if tools:
        listed = "".join("\n" + _json(t) for t in tools)
        system = (system + "\n\n" if system else "") + _BEFORE_TOOLS + listed + _AFTER_TOOLS
    if system:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for i, message in enumerate(rest):
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            first = i == 0 or rest[i - 1]["role"] != "tool"
            last = i + 1 == len(rest) or rest[i + 1]["role"] != "tool"
            text = "<|im_start|>user" if first else ""
            out.append(
                (f"{text}\n<tool_response>\n{content}\n</tool_response>" + ("<|im_end|>\n" if last else ""), False)
            )
            continue
        for n, each in enumerate(message.get("tool_calls") or ()):
            function = each["function"]
            arguments = function["arguments"]
            content += "\n" if content or n else ""
            said = arguments if isinstance(arguments, str) else _json(arguments)
            content += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {said}}}\n</tool_call>'
        if role == "assistant":
            out += [("<|im_start|>assistant\n", False), (content + "<|im_end|>", True), ("\n", False)]
        else:
            out.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    return out


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None, prompt: bool = True) -> str:
    """The whole text; with `prompt` it ends where the assistant is to speak."""
    return "".join(text for text, _ in segments(messages, tools)) + ("<|im_start|>assistant\n" if prompt else "")
