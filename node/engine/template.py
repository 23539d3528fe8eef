"""Chat templates: the Jinja text that a model's file carries, rendered as Hugging Face's `apply_chat_template` does.

The environment (sandboxed, trim_blocks, lstrip_blocks, loop controls, `raise_exception`, `strftime_now`, `tojson`
without escaping, `generation`) is that of transformers' utils/chat_template_utils.py, which templates are written
against.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from node.core import formats, harmony, mistral, thoughts
from node.core.formats import Format
from node.errors import InvalidRequest
from node.types import Message, Tool

_TAIL = 64  # characters of a prompt's end, more than the tag of a thought and white space
_BREAK = "\n"


class ChatTemplate:
    """A compiled template. Raises InvalidRequest if the text is no Jinja template."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation], autoescape=False
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _refuse
        env.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
        self._bos, self._eos = bos, eos
        self._format = formats.of(source)
        self._shows = mistral.OPENS in source  # what was thought, as a part of a content
        try:
            self._template = env.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as e:
            raise InvalidRequest(f"the model's chat template is not valid: {_line(e)}") from None

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], think: bool | None = None) -> str:
        """The prompt for the assistant's next turn; `think` as in SamplingParams. Raises InvalidRequest if the template
        refuses the messages."""
        # Qwen3's name and others' (vLLM and llama-server pass the first), and DeepSeek-V3.1's.
        told: dict[str, Any] = {} if think is None else {"enable_thinking": think, "thinking": think}
        if think is False and self._format is Format.HARMONY:
            told["reasoning_effort"] = "low"  # the least that gpt-oss knows
        try:
            text = self._template.render(
                messages=self._messages(messages),
                tools=[_tool(t) for t in tools] or None,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                **told,
            )
            if think is False and not tools and text.endswith(harmony.ROLE):
                return text + harmony.FINAL
            # Templates that cannot be told open the thought all the same (DeepSeek-R1's, QwQ's): an empty one then.
            is_open = think is False and thoughts.opened(text[-_TAIL:])
            return f"{text}{'' if text.endswith(_BREAK) else _BREAK}{thoughts.CLOSES}{_BREAK * 2}" if is_open else text
        except InvalidRequest:
            raise
        except Exception as e:  # A template is the model author's program: it may raise anything.
            raise InvalidRequest(f"the model's chat template cannot render these messages: {_line(e)}") from None

    def _messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages in the words that templates of this format have for them."""
        said = [_message(m) for m in messages]
        asked = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        for i, m in enumerate(said):
            thought = m.get("reasoning_content")
            if thought and self._format is Format.HARMONY and m.get("tool_calls"):
                m["thinking"], m["content"] = thought, ""  # the template takes one of them
            elif thought and self._shows and i > asked:  # to a model that waits for its tools
                text = [{"type": "text", "text": m["content"]}] if m["content"] else []
                m["content"] = [{"type": "thinking", "thinking": thought}, *text]
        return said


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, around what an assistant says: a mark for training, nothing else."""

    tags = {"generation"}  # noqa: RUF012  (as the library declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """What is in it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _message(m: Message) -> dict[str, Any]:
    """A message as templates know it. What an assistant thought is apart from what it said: whether it is shown again
    is up to the template (most show it only to a model that waits for its tools), as in llama-server."""
    out: dict[str, Any] = {"role": m.role, "content": m.content}
    if m.role == "assistant":
        thought, out["content"] = thoughts.split(m.content)
        if thought:
            out["reasoning_content"] = thought
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _arguments(c.arguments)}}
            for c in m.tool_calls
        ]
    if m.tool_call_id:
        out["tool_call_id"] = m.tool_call_id
    return out


def _tool(t: Tool) -> dict[str, Any]:
    function = {"name": t.name, "description": t.description, "parameters": json.loads(t.parameters)}
    return {"type": "function", "function": function}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> None:
    raise InvalidRequest(f"the model's chat template refuses these messages: {_line(message)}")


def _line(said: object) -> str:
    return " ".join(str(said)[:300].split())
