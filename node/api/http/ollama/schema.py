"""What requests may say, in Ollama's words. Fields that are not named here are ignored, and null means "not said"."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from node.api.http import schema

Long = Annotated[int, Meta(ge=-2, le=2**31 - 1)]  # -1 and -2: no limit but the context's


class Options(Struct):
    """How tokens are chosen. What concerns how a model is loaded (num_ctx, num_gpu, …) is the node's own affair."""

    temperature: schema.Temperature | None = None
    top_p: schema.Share | None = None
    top_k: schema.Count | None = None
    min_p: schema.Share | None = None
    seed: schema.Seed | None = None
    num_predict: Long | None = None
    stop: schema.Stops | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: schema.Penalty | None = None
    frequency_penalty: schema.Penalty | None = None


class Function(Struct):
    """The call of a function; Ollama's arguments are an object, not a text."""

    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


class ToolCall(Struct):
    """A call that an assistant's message asked for."""

    function: Function
    id: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None


class _Request(Struct, kw_only=True):
    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    logprobs: bool | None = None
    top_logprobs: schema.Alternatives | None = None
    keep_alive: Any = None
    think: bool | str | None = None  # a text is how much; that is the model's affair
    # Ours, as over OpenAI's API.
    topic: str | None = None
    conclave: schema.Conclave | None = None


class ChatRequest(_Request, kw_only=True):
    """POST /api/chat. Without messages, it asks whether the model is loaded."""

    messages: list[Message] | None = None
    tools: list[schema.Tool] | None = None


class GenerateRequest(_Request, kw_only=True):
    """POST /api/generate. Without a prompt, it asks whether the model is loaded. `raw`: the text as it stands."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None
    raw: bool | None = None


class EmbedRequest(Struct, kw_only=True):
    """POST /api/embed, and /api/embeddings, which is older and says `prompt`."""

    model: str = ""
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None


class ShowRequest(Struct, kw_only=True):
    """POST /api/show; `name` is the older word for a model."""

    model: str = ""
    name: str = ""
