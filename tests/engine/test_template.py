"""Chat templates of models: rendered as Hugging Face renders them, and kept inside their sandbox."""

import json

import pytest

from node.engine.template import ChatTemplate
from node.errors import InvalidRequest
from node.types import Message, Tool, ToolCall

# The shape of Qwen2.5's template: ChatML, tools in the system message, calls and their results in Hermes form.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501

# The shape of Llama 3's: bos_token, trimmed contents, a date, a refusal by raise_exception.
LLAMA = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant", "tool"] %}
        {{- raise_exception("unknown role " ~ message.role) }}
    {%- elif message.role == "tool" %}
        {%- if loop.first %}{{- raise_exception("a tool result answers nothing") }}{%- endif %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content | tojson + "<|eot_id|>" }}
        {%- continue %}
    {%- endif %}
    {{- "<|start_header_id|>" + message['role'] + "<|end_header_id|>\\n\\n" }}
    {{- message['content'] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

USER = Message("user", "hi <b> & ü")
ADD = Tool("add", "Adds two numbers.", '{"type": "object", "properties": {"a": {"type": "number"}}}')


def test_qwen() -> None:
    template = ChatTemplate(QWEN)
    assert template.render([Message("system", "Be brief."), USER], []) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi <b> & ü<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "You are a helpful assistant." in template.render([USER], [])


def test_qwen_with_tools() -> None:
    call = Message("assistant", "Let me add.", (ToolCall("add", '{"a": 1, "b": "<ü>"}', "call_0"),))
    text = ChatTemplate(QWEN).render([USER, call, Message("tool", "3", tool_call_id="call_0")], [ADD])
    shown = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(shown) == {
        "type": "function",
        "function": {"name": "add", "description": "Adds two numbers.", "parameters": json.loads(ADD.parameters)},
    }
    assert text.endswith(
        '<|im_start|>assistant\nLet me add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "<ü>"}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama() -> None:
    template = ChatTemplate(LLAMA, bos="<|begin_of_text|>", eos="<|eot_id|>")
    assert template.render([Message("user", "  hi \n"), Message("tool", 'a"ü')], []) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        '<|start_header_id|>ipython<|end_header_id|>\n\n"a\\"ü"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_what_a_template_refuses_is_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: a tool result answers nothing"):
        ChatTemplate(LLAMA).render([Message("tool", "3")], [])


def test_arguments_that_are_no_json_are_passed_as_they_are() -> None:
    for arguments in ("not json", "[" * 100_000):
        call = Message("assistant", "", (ToolCall("add", arguments),))
        assert json.dumps(arguments) in ChatTemplate(QWEN).render([USER, call, USER], [])


@pytest.mark.parametrize("options", ["", "indent=4", "ensure_ascii=False", 'separators=(",", ":")', "sort_keys=true"])
def test_tojson_takes_what_templates_give_it(options: str) -> None:
    text = ChatTemplate("{{ tools[0].function.parameters | tojson(" + options + ") }}").render([USER], [ADD])
    assert json.loads(text) == json.loads(ADD.parameters)


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ messages", "{% endfor %}", "{% nothing %}", "{{ " + "(" * 5000 + "}}"],
    ids="if open endfor unknown deep".split(),
)
def test_what_is_no_template(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template is not valid"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "expression",
    [
        "messages.__class__.__mro__[1].__subclasses__()",
        "''.__class__.__base__.__subclasses__()",
        "raise_exception.__globals__['json']",
        "self.__init__.__globals__",
        "'{0.__class__.__mro__}'.format(messages)",
        "messages.append(1)",
        "messages[0].update(role='system')",
        "range(10000000)|list",
        "1 // 0",
        "nothing.at.all",
        "open('/etc/passwd').read()",
        "cycler.__init__.__globals__.os.popen('true')",
    ],
)
def test_a_template_stays_in_its_sandbox(expression: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate("{{ " + expression + " }}").render([USER], [])


def test_what_is_unsafe_is_not_there() -> None:
    assert ChatTemplate("[{{ strftime_now.__globals__ }}]").render([USER], []) == "[]"


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("{{ raise_exception('a\\nb' * 100000) }}").render([USER], [])
    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message


# How Qwen3's shows what was thought: only to a model that waits for its tools; and DeepSeek-R1's, which never does.
THINKING = """
{%- set ns = namespace(last=0) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endfor %}
{%- for m in messages %}
    {{- '<' + m.role + '>' }}
    {%- if m.reasoning_content is string and loop.index0 > ns.last %}
        {{- '<think>' + m.reasoning_content + '</think>' }}
    {%- endif %}
    {{- m.content.split('</think>')[-1] }}
{%- endfor %}
{{- '<assistant>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
"""


def test_thoughts_are_shown_where_the_template_shows_them() -> None:
    template = ChatTemplate(THINKING)
    said = [Message("user", "a"), Message("assistant", "<think>\nhm\n</think>\n\nb")]
    assert template.render([*said, Message("user", "c")], ()) == "<user>a<assistant>b<user>c<assistant>"
    assert template.render([*said, Message("tool", "c")], ()) == (
        "<user>a<assistant><think>hm</think>b<tool>c<assistant>"
    )
    quoted = Message("user", "<think>not a model's</think>x")
    assert "<think>not a model's" in ChatTemplate("{{ messages[0].content }}").render([quoted], ())


def test_a_template_is_told_whether_to_think() -> None:
    template = ChatTemplate(THINKING)
    ends = [template.render([Message("user", "a")], (), think).removeprefix("<user>a") for think in (None, True, False)]
    assert ends == ["<assistant>", "<assistant>", "<assistant><think></think>"]


def test_a_template_that_opens_a_thought_in_any_case_has_an_empty_one() -> None:
    template = ChatTemplate("<user>{{ messages[0].content }}<assistant><think>\n\n")
    prompts = [template.render([Message("user", "a")], (), think) for think in (None, False)]
    assert prompts == ["<user>a<assistant><think>\n", "<user>a<assistant><think>\n</think>\n\n"]


# As gpt-oss's shows what was thought: with a call, in place of a text.
HARMONY = """
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {%- if m.content and m.thinking %}{{ raise_exception('one of them') }}{% endif %}
        {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}
        {{- ' to=functions.' + m.tool_calls[0].function.name + '<|channel|>commentary json<|message|>{}<|call|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|start|>assistant' if reasoning_effort != 'high' }}
"""
# As Ministral's does: as a part of a content.
MISTRAL = """
{%- for m in messages %}
    {%- if m.content is string %}{{ '<' + m.role + '>' + m.content }}
    {%- else %}
        {%- for part in m.content %}
            {{- part.text if part.type == 'text' else '[THINK]' + part.thinking + '[/THINK]' }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
"""
THOUGHT = Message("assistant", "<think>\nhm\n</think>\n\nb", (ToolCall("add", "{}"),))
RESULT = Message("tool", "c")


def test_thoughts_in_the_words_of_other_formats() -> None:
    said = [Message("user", "a"), THOUGHT, RESULT]
    assert ChatTemplate(HARMONY).render(said, ()) == (
        "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>tool<|message|>c<|end|><|start|>assistant"
    )
    template = ChatTemplate(MISTRAL)
    assert template.render(said, ()) == "<user>a[THINK]hm[/THINK]b<tool>c"
    assert template.render([*said, Message("user", "d")], ()) == "<user>a<assistant>b<tool>c<user>d"


def test_harmony_without_a_thought_begins_with_the_answer() -> None:
    """But where there are tools: a call has a channel of its own."""
    template = ChatTemplate(HARMONY)
    ends = [template.render([Message("user", "a")], tools, False).split("<|end|>")[1] for tools in ((), (Tool("t"),))]
    assert ends == ["<|start|>assistant<|channel|>final<|message|>", "<|start|>assistant"]


def test_marks_for_training_say_nothing() -> None:
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}!{% endfor %}")
    assert template.render([Message("assistant", "a"), Message("user", "b")], ()) == "a!b!"
