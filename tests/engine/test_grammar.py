"""Grammars that would end or hang the process are refused before llama.cpp sees them."""

import pytest

from node.engine.grammar import MAX_BYTES, MAX_DEPTH, check_grammar, check_schema
from node.errors import InvalidRequest

VOCABULARY = 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "nested"),
        ('root ::= "a"{5,2}', "{5,2}"),
        ('root ::= "a"{ 5 , 2 }', "smaller"),
        ("root ::= <[1000]>", "token 1000"),
        (f"root ::= <[{'9' * 5000}]>", "token 9999"),
        ('root ::= "' + "a" * MAX_BYTES + '"', "bytes"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why.replace("{", r"\{")):
        check_grammar(text, VOCABULARY)


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + "(" * MAX_DEPTH + '"a"' + ")" * MAX_DEPTH,
        'root ::= "' + "(" * 5000 + '"',
        "root ::= [" + "(" * 5000 + "]",
        'root ::= "a" # ' + "(" * 5000,
        'root ::= "\\"" ' + '("a")' * 5000,
        'root ::= "{5,2}" [{5,2}] "a"{2,5} "b"{3} "c"{2,} "d"{,4}',
        "root ::= <[999]> <think>",
        'root ::= "never ends',
    ],
)
def test_passed_on(text: str) -> None:
    check_grammar(text, VOCABULARY)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "not JSON"),
        ("5", "object"),
        ('{"type": "string", "maxLength": 100000}', "maxLength 100000"),
        ('{"properties": {"a": [{"minItems": 1e12}]}}', "minItems"),
        ('{"minLength": -1}', "minLength -1"),
        ('{"minLength": NaN}', "minLength"),
    ],
)
def test_schemas_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        check_schema(text)


def test_schemas_passed_on() -> None:
    check_schema('{"type": "object", "properties": {"maxLength": {"type": "string", "maxLength": 20}}}')
