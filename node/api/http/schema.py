"""What requests may say, in OpenAI's words. Fields that are not named here are ignored, and null means "not said".

https://platform.openai.com/docs/api-reference; what is ours is said to be so. Bounds here are those of the types; what
a value means is checked by `node.wire`, for HTTP and gRPC alike.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1, as in llama.cpp: no limit but the context's
Several = Annotated[int, Meta(ge=1, le=64)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=10)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
Stops = str | Annotated[list[str], Meta(max_length=16)]


class Function(Struct):
    """A function that the model may call, or the call of one."""

    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: str | None = None


class ToolCall(Struct):
    """A call that an assistant's message asked for."""

    function: Function
    id: str | None = None
    type: str | None = None


class Part(Struct):
    """A part of a message's content; only parts with text are taken."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None  # what an assistant thought before, as llama-server takes it too


class Tool(Struct):
    """A tool. Only functions are known."""

    type: str = "function"
    function: Function | None = None
    # The Responses API says it flat.
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Named(Struct):
    """The name of a function."""

    name: str


class Choice(Struct):
    """Which tool must be called."""

    type: str = "function"
    function: Named | None = None
    name: str | None = None


class JsonSchema(Struct):
    """A schema that the answer must fit."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class Format(Struct):
    """What an answer must look like: text, json_object or json_schema."""

    type: str
    json_schema: JsonSchema | None = None
    # The Responses API says it flat; llama.cpp takes it beside json_object too.
    schema: dict[str, Any] | None = None


class StreamOptions(Struct):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class Conclave(Struct):
    """Ours: how the answer is found. `events` streams plan, texts and ballots of all candidates as they come; with
    `peers` also what those of peers write. `leader` streams who leads after each ballot, `progress` how far the prompt
    is computed."""

    candidates: Several | None = None
    strategy: str | None = None
    scope: str | None = None
    early_stop: str | None = None
    events: bool | None = None
    peers: bool | None = None
    leader: bool | None = None
    progress: bool | None = None


class Sampling(Struct, kw_only=True):
    """What endpoints that write text have in common. From `top_k` on it is not OpenAI's, but llama.cpp's and ours."""

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    prompt_cache_key: str | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None
    topic: str | None = None
    conclave: Conclave | None = None


class TemplateWords(Struct):
    """What a chat template is told."""

    enable_thinking: bool | None = None


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    n: Several | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    stop: Stops | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    json_schema: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    # Whether the model thinks first: by vLLM's and llama-server's word, or `none` of OpenAI's efforts.
    chat_template_kwargs: TemplateWords | None = None
    reasoning_effort: str | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions: a text to go on with, as it is. Several texts are answered one after the other."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Limit | None = None
    n: Several | None = None
    logprobs: Alternatives | None = None
    stop: Stops | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    suffix: str | None = None
    json_schema: dict[str, Any] | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """POST /v1/embeddings: one text or several, or their tokens."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class Item(Struct, kw_only=True):
    """An input item of the Responses API: a message, a call that was made, or what it gave."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Text(Struct):
    """How the Responses API says what an answer must look like."""

    format: Format | None = None


class ResponsesRequest(Sampling, kw_only=True):
    """POST /v1/responses: text and function tools."""

    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize, as in llama-server. `add_special`: as the beginning of a prompt."""

    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize, as in llama-server."""

    tokens: list[Count]


class TemplateRequest(ChatRequest, kw_only=True):
    """POST /apply-template, as in llama-server: a conversation that is not answered."""

    add_generation_prompt: bool | None = None
