"""What is checked of a grammar before llama.cpp sees it: it comes from a client, and llama.cpp's parser is recursive.

Measured with llama-cpp-python 0.3.36: parentheses nested 20,000 deep overflow the stack, `{5,2}` never ends, a token
`<[id]>` outside the vocabulary ends the process, and a schema's `maxLength` of 100,000 is such a nest of parentheses.
"""

from __future__ import annotations

import json
import re
from typing import Any

from node.errors import InvalidRequest

MAX_BYTES = 1 << 16
MAX_DEPTH = 500
MAX_REPEATS = 10_000
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
# Literals, classes and comments are passed over: what looks like syntax inside them is text. One that never ends is
# taken up to the end of the grammar; the parser then says so.
_PIECE = re.compile(
    r'"(?:[^"\\]|\\.)*"?|\[(?:[^\]\\]|\\.)*\]?|#[^\n]*|\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}|<\[(\d+)\]>|([()])', re.DOTALL
)


def check_grammar(text: str, vocabulary: int) -> None:
    """Raises InvalidRequest for a GBNF grammar that could end or hang the process."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise InvalidRequest(f"the grammar is {size} bytes long: at most {MAX_BYTES}")
    depth = 0
    for piece in _PIECE.finditer(text):
        low, high, token, parenthesis = piece.groups()
        if parenthesis:
            depth += 1 if parenthesis == "(" else -1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the grammar is nested more than {MAX_DEPTH} deep: write it with rules")
        if high and int(high[:9]) < int((low or "0")[:9]):
            raise InvalidRequest(f"the grammar repeats {piece[0]}: the second number must not be the smaller one")
        if token and (len(token) > 9 or int(token) >= vocabulary):
            raise InvalidRequest(f"the grammar names token {token[:20]}: the model has {vocabulary}")


def check_schema(text: str) -> None:
    """Raises InvalidRequest for a JSON schema that is none, or would become too large a grammar."""
    if len(text.encode()) > MAX_BYTES:
        raise InvalidRequest(f"json_schema is {len(text.encode())} bytes long: at most {MAX_BYTES}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InvalidRequest(f"json_schema is not JSON: {e}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest("json_schema must be a JSON object")
    todo: list[Any] = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            for key in _COUNTS:
                count = value.get(key)
                if isinstance(count, int | float) and not 0 <= count <= MAX_REPEATS:
                    raise InvalidRequest(f"json_schema has {key} {count}: it must be 0 to {MAX_REPEATS}")
            todo += value.values()
        elif isinstance(value, list):
            todo += value
