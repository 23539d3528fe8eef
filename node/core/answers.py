"""From a candidate to a ballot: the answer key it is counted under, its weight, and the form of its text.

Every function is a function of its arguments alone and never raises on any text, so every node that reads the same
candidate makes the same ballot, and a coordinator may make a peer's ballots again instead of believing them.
"""

from __future__ import annotations

import json
import math

from node.core import keys, numbers, thoughts
from node.core.quality import MALFORMED, Number, call_quality, fences, load_json, quality
from node.core.tally import quantised
from node.types import Ballot, Candidate, Message, Strategy, Tool, ToolCall

__all__ = [
    "CONFIDENCE_TEMPERATURE",
    "answer_key",
    "ballot",
    "canonical_call",
    "confidence_weight",
    "has_key",
    "quality",
    "question_of",
    "resolve",
]

# Temperature of the confidence weight, in nats per token. CISC (arXiv 2502.06233) weighs answers by
# softmax(confidence / T) within the question and tunes T for each model; typical mean logprobs of one model's answers
# to one question lie a few tenths of a nat apart, which this turns into weights that differ by a factor of up to two.
CONFIDENCE_TEMPERATURE = 0.5

# Fields of a JSON answer in which a model thinks aloud. Two answers that agree but for these agree.
_REASONING = frozenset(
    {"reasoning", "rationale", "explanation", "thought", "thoughts", "thinking", "chain_of_thought", "scratchpad"}
)
# How many fenced blocks are tried for JSON, from the last one back.
_BLOCKS = 8
_CALL_PREFIX = "tool:"


def answer_key(text: str, *, question: str = "", json_schema: str = "", tool_calls: tuple[ToolCall, ...] = ()) -> str:
    """The key under which an answer is counted: equal keys are equal answers. Empty only for a blank text.

    In this order: the canonical form of its tool calls; under `json_schema` the JSON value that the text is or holds;
    the last `answer:` line, `\\boxed{}` or `#### ` line; the letter chosen, where the question offers lettered
    options; the last number, where it asks for one; else the normalised text.
    `question` is the message that is answered (`question_of`). Never raises.
    """
    if tool_calls:
        return ";".join(sorted(canonical_call(call) for call in tool_calls))
    text = thoughts.answer(text)
    if not text.strip():
        return ""
    if json_schema and (value := _json_value(text)) is not None:
        return value
    ask = keys.asked(question)
    found = keys.marked(text, ask)
    if found is None and ask.options:
        found = keys.choice(text, ask.options)
    if found is None and ask.number:
        found = numbers.last(text)
    return _said(found if found is not None else keys.normalise(text))


def has_key(question: str, *, json_schema: str = "", tools: tuple[Tool, ...] = ()) -> bool:
    """Whether answers to a question can be compared by exact match of their keys."""
    return bool(json_schema or tools) or keys.asked(question).keyed


def question_of(messages: tuple[Message, ...]) -> str:
    """The content of the last user message: what the candidates answer. Empty without one."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def resolve(
    strategy: Strategy, messages: tuple[Message, ...], tools: tuple[Tool, ...] = (), json_schema: str = ""
) -> Strategy:
    """The strategy to count by: `AUTO` becomes majority where answers have keys, else similarity.

    They have keys where the last user message asks for a number, offers lettered options or demands an `answer:` line
    or `\\boxed{}` (a system message may demand these too), and under a JSON schema or with tools.
    """
    if strategy is not Strategy.AUTO:
        return strategy
    demanded = any(message.role == "system" and keys.asked(message.content).line for message in messages)
    keyed = demanded or has_key(question_of(messages), json_schema=json_schema, tools=tools)
    return Strategy.MAJORITY if keyed else Strategy.SIMILARITY


def ballot(candidate: Candidate, strategy: Strategy, *, question: str = "", json_schema: str = "") -> Ballot:
    """The ballot of a finished candidate under a resolved strategy. Never raises.

    Its weight is 1 but under `confidence` (`confidence_weight`). Under `similarity` the key is the normalised text,
    or the canonical tool calls: what a longer text means is for the vectors to say, not for the number it ends with.
    """
    if candidate.tool_calls:
        key = answer_key("", tool_calls=candidate.tool_calls)
        form = call_quality([call.arguments for call in candidate.tool_calls], candidate.finish_reason)
    else:
        if strategy is Strategy.SIMILARITY:
            shown = thoughts.answer(candidate.text)
            key = _said(keys.normalise(shown)) if shown.strip() else ""
        else:
            key = answer_key(candidate.text, question=question, json_schema=json_schema)
        form = quality(candidate.text, candidate.finish_reason, json_schema=json_schema)
    weight = confidence_weight(candidate.mean_logprob) if strategy is Strategy.CONFIDENCE else 1.0
    # Half a surrogate pair, which JSON can spell, has no UTF-8 and could not be sent.
    return Ballot(candidate, key.encode("utf-8", "replace").decode(), weight, form)


def confidence_weight(mean_logprob: float) -> float:
    """exp(mean_logprob / T), in (0, 1]: the numerator of a softmax over the question, as in CISC (arXiv 2502.06233).

    The denominator is one number for the whole question, so leaving it out changes no share and no winner, and keeps
    weights additive: tallies of several nodes merge to the tally of all their ballots. The confidence is the mean
    logprob itself (CISC's "response probability" is its exponential, p; so this weight is p ** (1 / T)). DeepConf
    (arXiv 2508.15260) averages over the tokens as well, but the logprobs of the top k at each place, which no backend
    here gives for nothing. A logprob above 0 counts as 0, NaN as no confidence at all.
    """
    if math.isnan(mean_logprob):
        return quantised(0.0)
    return quantised(math.exp(min(0.0, mean_logprob) / CONFIDENCE_TEMPERATURE))


def canonical_call(call: ToolCall) -> str:
    """A tool call as `tool:name({…})`, its arguments as JSON with sorted names and canonical numbers."""
    arguments = _canonical_json(load_json(call.arguments.strip() or "{}"))
    shown = keys.normalise(call.arguments) if arguments is None else arguments
    return f"{_CALL_PREFIX}{call.name.strip()}({shown})"


def _said(key: str) -> str:
    # Prose that is spelled like a call must never be counted as that call.
    return f"text:{key}" if key.startswith(_CALL_PREFIX) else key


def _json_value(text: str) -> str | None:
    """The canonical JSON that a text is, else its last fenced block that is JSON, else its outermost brackets' text."""
    texts = [text.strip()]
    texts += [body for language, body in reversed(fences(text)[0][-_BLOCKS:]) if language in ("", "json")]
    texts += [text[text.find(left) : text.rfind(right) + 1] for left, right in ("{}", "[]") if left in text]
    for each in texts:
        if (found := _canonical_json(_without_reasoning(load_json(each)))) is not None:
            return found
    return None


def _without_reasoning(value: object) -> object:
    if not isinstance(value, dict):
        return value
    rest = {name: item for name, item in value.items() if name.casefold() not in _REASONING}
    return rest or value


def _canonical_json(value: object) -> str | None:
    """A value of `load_json` as canonical text; None for `MALFORMED` and for what is nested too deep."""
    try:
        return None if value is MALFORMED else _dump(value)
    except RecursionError:
        return None


def _dump(value: object) -> str:
    if isinstance(value, Number):
        return numbers.parse(value) or value
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{_dump(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
