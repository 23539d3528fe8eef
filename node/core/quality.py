"""The form of an answer, 0..1: does it parse as what it claims to be, is it whole, does it loop.

Form is not truth. It breaks ties between clusters of equal weight, picks the text that stands for a cluster, and
ranks clusters under the strategy `quality`. Length alone never counts: a short whole answer has full marks.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence

from node.core import thoughts
from node.types import FinishReason

# What is left of an answer's quality after each fault. They multiply, so two faults rank below one.
CUT_OFF = 0.5
UNPARSED = 0.4
UNCLOSED = 0.7
LEAKED = 0.7
TRAILING = 0.9
# Least quality of a text that says anything at all; empty text has 0.
LEAST = 0.01

# Text that is looked at for loops, in characters from the end: that is where a model that loops is.
_LOOP_TAIL = 8192
_NGRAM = 6  # words
_TOLERATED = 0.2  # share of repeated n-grams that lists, tables and refrains have without being loops
# Code above this size is not parsed; it is held for well-formed. Parsing costs about 1 s a MB.
_PARSE_LIMIT = 65536

_RUN = re.compile(r"(?=[^\n]{0,40}[^\W\d_])(.{1,40}?)\1{9,}", re.DOTALL)
_LEAK = re.compile(r"<\|[a-z_]{1,32}\|>|\ufffd|</?s>|\[/?INST\]")
_PYTHON = frozenset({"python", "py", "python3"})
_JSON = frozenset({"json"})
_ENDINGS = tuple(".!?…。！？:;)]}>\"'”’»`*|$~")


def quality(text: str, finish_reason: FinishReason, *, json_schema: str = "") -> float:
    """How well formed a text is, 0..1; empty text is 0. Never raises.

    `json_schema` is the JSON schema (as text) that the answer had to fit, or empty. Of it only `type`, `enum` and
    `required` at the top are checked: the sampler's grammar enforces the rest.
    """
    body = thoughts.answer(text)
    if not body.strip():
        return 0.0
    score = 1.0
    if finish_reason not in (FinishReason.STOP, FinishReason.TOOL_CALLS):
        score *= CUT_OFF
    blocks, closed = fences(body)
    if not closed or thoughts.OPENS in body:
        score *= UNCLOSED
    score *= _parses(body, blocks, json_schema)
    score *= 1.0 - _loop_share(body)
    if _LEAK.search(body):
        score *= LEAKED
    if _trails_off(body):
        score *= TRAILING
    # Rounded, so that the last bit of a product never decides a tie.
    return round(max(LEAST, score), 6)


def call_quality(arguments: Sequence[str], finish_reason: FinishReason) -> float:
    """Quality of an answer that consists of tool calls: the share whose arguments are a JSON object, 0..1."""
    if not arguments:
        return 0.0
    good = sum(1 for text in arguments if not text.strip() or isinstance(load_json(text), dict))
    share = UNPARSED + (1.0 - UNPARSED) * good / len(arguments)
    whole = finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)
    return round(share if whole else share * CUT_OFF, 6)


def fences(text: str) -> tuple[list[tuple[str, str]], bool]:
    """The fenced blocks of a Markdown text as (language, body), and whether the last one was closed."""
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    mark = ""
    lines: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if language is None:
            if bare.startswith(("```", "~~~")):
                mark = bare[:3]
                info = bare.lstrip(mark[0]).strip()
                # "```code```" on one line is inline code, not an open fence.
                if mark not in info:
                    language = info.split(maxsplit=1)[0].casefold() if info else ""
                    lines = []
        elif bare.startswith(mark) and not bare.strip(mark[0]):
            blocks.append((language, "\n".join(lines)))
            language = None
        else:
            lines.append(line)
    return blocks, language is None


class Malformed:
    """The one value that no JSON text has; `load_json` answers it where a text is no JSON."""


MALFORMED = Malformed()


class Number(str):
    """A JSON number as it was written, not converted: it may be longer than any number type can hold."""

    __slots__ = ()


def load_json(text: str) -> object:
    """The JSON value that a text is, its numbers as `Number`; `MALFORMED` where it is none. Never raises."""
    try:
        value: object = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=Number)
    except (ValueError, RecursionError):
        return MALFORMED
    return value


def _parses(body: str, blocks: list[tuple[str, str]], json_schema: str) -> float:
    """1 when everything that claims a syntax has it, down to `UNPARSED` when nothing does."""
    bare = body.strip()
    if json_schema:
        value = load_json(bare)
        if value is MALFORMED:
            inner = [load_json(block) for language, block in blocks if language in ("", "json")]
            value = inner[-1] if inner else MALFORMED
        return 1.0 if value is not MALFORMED and _fits(value, load_json(json_schema)) else UNPARSED
    claims = [_is_python(block) for language, block in blocks if language in _PYTHON]
    claims += [load_json(block) is not MALFORMED for language, block in blocks if language in _JSON]
    if not blocks and bare[0] == "{" and '"' in bare[:64]:
        claims.append(load_json(bare) is not MALFORMED)
    if not claims:
        return 1.0
    return UNPARSED + (1.0 - UNPARSED) * sum(claims) / len(claims)


def _is_python(code: str) -> bool:
    if len(code) > _PARSE_LIMIT:
        return True
    try:
        # A warning about an escape in a model's code is no news for whoever runs the node.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError):
        return False  # SystemError: CPython 3.11's own parser miscounts its depth now and then
    return True


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "number": Number,
    "integer": Number,
    "boolean": bool,
    "null": type(None),
}


def _fits(value: object, schema: object) -> bool:
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if kind == "string":
        if not isinstance(value, str) or isinstance(value, Number):
            return False
    elif isinstance(kind, str) and kind in _TYPES and not isinstance(value, _TYPES[kind]):
        return False
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        return False
    required = schema.get("required")
    if isinstance(value, dict) and isinstance(required, list):
        return all(name in value for name in required if isinstance(name, str))
    return True


def _loop_share(body: str) -> float:
    """Share of the text's end that says again what was just said, 0 (none, or no more than lists do) to 1."""
    tail = body[-_LOOP_TAIL:]
    words = tail.split()
    grams = Counter(tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1))
    total = sum(grams.values())
    # Below three n-grams' worth of words there is nothing to repeat.
    repeated = (total - len(grams)) / total if total >= 3 * _NGRAM else 0.0
    lines = [line.strip() for line in tail.splitlines() if len(line.strip()) >= 12]
    if len(lines) >= 6:
        repeated = max(repeated, 1.0 - len(set(lines)) / len(lines))
    # Loops below the size of a word ("hahaha…") or without spaces (many scripts) show as a run.
    if run := _RUN.search(body[-2048:]):
        repeated = max(repeated, (run.end() - run.start()) / min(len(body), 2048))
    return 0.0 if repeated <= _TOLERATED else (repeated - _TOLERATED) / (1.0 - _TOLERATED) * 0.95


def _trails_off(body: str) -> bool:
    """Whether a text of several sentences ends in the middle of one."""
    end = body.rstrip()
    if end.endswith(_ENDINGS) or end[-1:].isdigit() or "\n" in end[-80:]:
        return False
    return any(stop in end for stop in (". ", "! ", "? "))
