"""Answer keys, quality and ballots: a table of cases, then anything at all, within a time budget."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.core import numbers
from node.core.answers import (
    CONFIDENCE_TEMPERATURE,
    answer_key,
    ballot,
    confidence_weight,
    has_key,
    quality,
    question_of,
    resolve,
)
from node.types import Candidate, FinishReason, Message, Strategy, Tool, ToolCall

# The same examples in every run, however busy the machine is.
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=60)

STOP = FinishReason.STOP
CHOICE = "What is the capital of France?\nA) London\nB) Paris\nC) Rome\nD) Berlin"
INLINE = "Which gas do plants absorb? (A) oxygen (B) carbon dioxide (C) helium"
LOWER = "Which planet is largest? Choose one.\na) Mars\nb) Jupiter\nc) Venus"
COUNT = "Ann has 9 apples and gives 2 away. How many apples are left?"
SCHEMA = '{"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}'


@pytest.mark.parametrize(
    ("text", "question", "key"),
    [
        # a stated answer
        ("So.\nAnswer: 1,234.50", "", "1234.5"),
        ("ANSWER:1234.5", "", "1234.5"),
        ("answer: $1,234.50.", "", "1234.5"),
        ("Answer: 3\nWait.\nAnswer: 4", "", "4"),
        ("Answer: 3. No: answer: 4", "", "4"),
        ("**Answer:** 42 apples", COUNT, "42"),
        ("__Final Answer__: **42**", COUNT, "42"),
        ("### Answer\n7", COUNT, "7"),
        ("Final answer:\n\n  **7**\n", "", "7"),
        ("Answer: Paris.", "", "paris"),
        ("Answer: **New  York**", "", "new york"),
        ("Answer: yes, because 4 is even", "", "yes"),
        ("Answer: 3 + 4 = 7", COUNT, "7"),
        ("Answer: seven", COUNT, "7"),
        ("Answer: none of them", COUNT, "none of them"),
        ("Answer:", COUNT, "answer"),
        ("answer: 12:30", "", "12:30"),
        ("My answers: 5 and 6", "", "my answers: 5 and 6"),
        ("答え 3 answer：4", "", "4"),
        ("3 * 6 = 18\n#### 18", COUNT, "18"),
        ("#### 5 ways to cook\nBoil them.", "", "5 ways to cook"),
        # \boxed{}
        (r"Thus \boxed{42}.", "", "42"),
        (r"$\boxed{\frac{3}{4}}$", "", "0.75"),
        (r"\boxed{\dfrac{1}{3}}", "", "1/3"),
        (r"\boxed{x^{2}+\sqrt{y}}", "", r"x^{2}+\sqrt{y"),
        (r"\boxed{1} or rather \boxed{2}", "", "2"),
        (r"\boxed{\text{Paris}}", "", "paris"),
        (r"\boxed{1{,}234}", "", "1234"),
        (r"\boxed{\$5.00}", "", "5"),
        (r"\boxed{50\%}", COUNT, "50"),
        (r"Answer: $\boxed{-7}$", "", "-7"),
        (r"\boxed{8} and then cut \boxed{9", COUNT, "8"),
        (r"\boxed{}", "", r"\boxed"),
        # numbers
        ("She has 9 - 2 = 7 apples left.", COUNT, "7"),
        ("There are 7.", COUNT, "7"),
        ("7", COUNT, "7"),
        ("The answer is 7 because 9 - 2 is 7, not 8", COUNT, "7"),
        ("The answer is obtained from 9 and 2: it is 7", COUNT, "7"),
        ("1. Take 9\n2. Give 2\n", COUNT, "2"),
        ("1. Nine take away two\n2. Count: 7 apples\n3. Done", COUNT, "7"),
        ("seven", COUNT, "7"),
        ("Seven apples are left.", COUNT, "7"),
        ("No idea!", COUNT, "no idea"),
        ("−5", COUNT, "-5"),
        ("٤٢", COUNT, "42"),
        ("It is １２，０００．５", COUNT, "12000.5"),
        ("1\u202f234\u202f567", COUNT, "1234567"),
        ("1 234 567", COUNT, "1234567"),
        ("It costs $1.5 million", COUNT, "1500000"),
        ("about 6.02 × 10^{23} of them", COUNT, "602" + "0" * 21),
        ("+0", COUNT, "0"),
        ("-0.00", COUNT, "0"),
        ("25%", COUNT, "25"),
        ("about 5 km", COUNT, "5"),
        ("between 3-7", COUNT, "7"),
        ("H2O and CO2", COUNT, "h2o and co2"),
        ("nan", COUNT, "nan"),
        ("1e400", COUNT, "1e400"),
        ("1" + "0" * 400, COUNT, "1e400"),
        ("1e-400", COUNT, "1e-400"),
        ("1e" + "9" * 5000, COUNT, "1.e" + "9" * 5000),
        ("9" * 5000, COUNT, "9" * 5000 + "e0"),
        # choices
        ("B", CHOICE, "B"),
        ("(b)", CHOICE, "B"),
        ("B.", CHOICE, "B"),
        ("**B**", CHOICE, "B"),
        ("B) Paris", CHOICE, "B"),
        ("Paris", CHOICE, "B"),
        ("Paris.", CHOICE, "B"),
        ("The answer is B", CHOICE, "B"),
        ("The correct answer is (B) Paris.", CHOICE, "B"),
        ("The answer is **B**, since C is in Italy.", CHOICE, "B"),
        ("A is in England. B is in France.", CHOICE, "B"),
        ("A) is wrong, so option B.", CHOICE, "B"),
        ("B is the correct one, not A", CHOICE, "B"),
        ("I would say it is (B)", CHOICE, "B"),
        ("Answer: B", CHOICE, "B"),
        ("Answer: B) Paris", CHOICE, "B"),
        ("Answer: Paris", CHOICE, "B"),
        (r"\boxed{B}", CHOICE, "B"),
        (r"\boxed{\text{(B)}}", CHOICE, "B"),
        ("The answer is a city", CHOICE, "the answer is a city"),
        ("E", CHOICE, "e"),
        ("It must be Paris then.", CHOICE, "B"),
        ("C++ it is", "Choose:\nA) ???\nB) !!!", "c++ it is"),
        ("Paris, not Rome.", CHOICE, "paris, not rome"),
        ("I pick B because A and C are elsewhere", CHOICE, "B"),
        ("A country's capital is its seat: Paris", CHOICE, "B"),
        ("I choose b) Jupiter", LOWER, "B"),
        ("The correct option is **b) Jupiter**.", LOWER, "B"),
        ("It's option b", LOWER, "B"),
        ("Jupiter (b)", LOWER, "B"),
        ("The largest is Jupiter.", LOWER, "B"),
        ("The answer is a planet.", LOWER, "the answer is a planet"),
        ("(B)", INLINE, "B"),
        ("carbon dioxide", INLINE, "B"),
        # text
        ("  Hello,   World!\n", "", "hello, world"),
        ("ＨＥＬＬＯ", "", "hello"),
        ("Straße", "", "strasse"),
        ("C#", "", "c#"),
        ("C++", "", "c++"),
        ("???", "", "???"),
        ("5 km", "", "5 km"),
        ("25%", "", "25%"),
        ("$1,000", "", "1000"),
        ("", COUNT, ""),
        (" \n\t", CHOICE, ""),
        # what is thought is not said
        ("<think>Answer: 3</think>\nAnswer: 4", COUNT, "4"),
        ("<think>It is 3</think>4", COUNT, "4"),
        ("<think>It is 3</think>", COUNT, ""),
        # prose is no call
        ("tool:rm", "", "text:tool:rm"),
        ("Answer: tool:rm", "", "text:tool:rm"),
    ],
)
def test_key(text: str, question: str, key: str) -> None:
    assert answer_key(text, question=question) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"answer": 4}', '{"answer":4}'),
        ('{"answer": 4.0, "reasoning": "two and two"}', '{"answer":4}'),
        ('{"b": [1, 2.50, true, null], "a": "ß"}', '{"a":"ß","b":[1,2.5,true,null]}'),
        ('Sure:\n```json\n{"answer": 1e2}\n```', '{"answer":100}'),
        ('Here: {"answer": 4} as asked', '{"answer":4}'),
        ("[3, 1]", "[3,1]"),
        ('"Yes"', '"Yes"'),
        ("-0.0", "0"),
        ('{"answer": ' + "7" * 5000 + "}", '{"answer":' + "7" * 5000 + "e0}"),
        ('{"answer": NaN}', '{"answer":NaN}'),
        ('{"reasoning": "only"}', '{"reasoning":"only"}'),
        ('{"answer": "answer: 5"}', '{"answer":"answer: 5"}'),
        ("Answer: 4", "4"),
        ("{broken", "broken"),
    ],
)
def test_key_under_a_schema(text: str, key: str) -> None:
    assert answer_key(text, json_schema=SCHEMA) == key


def test_key_of_tool_calls() -> None:
    def key(*calls: tuple[str, str]) -> str:
        made = tuple(ToolCall(name, arguments, id=str(i)) for i, (name, arguments) in enumerate(calls))
        return answer_key("Let me look.", tool_calls=made)

    assert key(("weather", '{"city": "Rome", "days": 2.0}')) == 'tool:weather({"city":"Rome","days":2})'
    assert key(("weather", '{ "days":2,"city":"Rome"}')) == key(("weather", '{"city": "Rome", "days": 2.0}'))
    assert key(("weather", '{"city": "rome"}')) != key(("weather", '{"city": "Rome"}'))
    assert key(("a", "{}"), ("b", "")) == key(("b", "{}"), ("a", "{}")) == "tool:a({});tool:b({})"
    assert key(("a", "not json")) == "tool:a(not json)"


def test_prose_never_has_the_key_of_a_call() -> None:
    call = ToolCall("rm", '{"path":"/"}')
    key = answer_key("", tool_calls=(call,))
    for prose in (key, f"Answer: {key}", f" {key.upper()} ", f"\\boxed{{{key}}}", f'"{key}"'):
        assert answer_key(prose) != key
        assert not answer_key(prose).startswith("tool:")


@pytest.mark.parametrize(
    ("question", "keyed"),
    [
        ("What is 3+4?", True),
        ("what's 12 * 7", True),
        ("3+4=", True),
        ("What is (2 + 3) × 4?", True),
        ("What is the sum of 3 and 4?", True),
        ("What is the square root of 144?", True),
        ("What is 15% of 80?", True),
        ("Calculate 5!", True),
        ("How many legs has a spider?", True),
        ("In what year did the war end?", True),
        ("Find the value of x if 2x = 8", True),
        (COUNT, True),
        ("James writes a 3-page letter twice a week. How many pages does he write a year?", True),
        ("Explain your reasoning. How many are 5 and 6?", True),
        (CHOICE, True),
        (INLINE, True),
        ("Is the sky blue? End with 'Answer: yes' or 'Answer: no'.", True),
        (r"Prove it. Put your final answer within \boxed{}.", True),
        ("Hi", False),
        ("", False),
        ("What is the capital of France?", False),
        ("What happened on 9/11?", False),
        ("Who won in the 1998-1999 season?", False),
        ("What is the difference between Python 2 and Python 3?", False),
        ("Write a function that counts how many vowels are in a string", False),
        ("Please explain how many-body physics works", False),
        ("Write a poem with 10 lines", False),
        ("A. Smith and B. Jones met. Who are they?", False),
        ("Compare the value of art and science", False),
    ],
)
def test_which_questions_have_keys(question: str, keyed: bool) -> None:
    assert has_key(question) == keyed
    messages = (Message("system", "Be brief."), Message("user", "Hello 1+1"), Message("user", question))
    assert resolve(Strategy.AUTO, messages) is (Strategy.MAJORITY if keyed else Strategy.SIMILARITY)


def test_resolve() -> None:
    chat = (Message("user", "What is 3+4?"), Message("assistant", "7"), Message("user", "Why is the sky blue?"))
    assert question_of(chat) == "Why is the sky blue?"
    assert question_of((Message("system", "x"),)) == ""
    assert resolve(Strategy.AUTO, chat) is Strategy.SIMILARITY
    assert resolve(Strategy.AUTO, chat, (Tool("weather"),)) is Strategy.MAJORITY
    assert resolve(Strategy.AUTO, chat, (), SCHEMA) is Strategy.MAJORITY
    demand = Message("system", "End with a line 'Answer: X'.")
    assert resolve(Strategy.AUTO, (demand, *chat)) is Strategy.MAJORITY
    assert resolve(Strategy.AUTO, ()) is Strategy.SIMILARITY
    for strategy in set(Strategy) - {Strategy.AUTO}:
        assert resolve(strategy, chat, (Tool("weather"),), SCHEMA) is strategy


# --- numbers ----------------------------------------------------------------------------------------------------------


@REPEATABLE
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_every_spelling_of_a_number_has_one_form(value: object) -> None:
    spelled = f"{value:f}"
    form = numbers.parse(spelled)
    assert form is not None
    assert Fraction(form) == Fraction(spelled)
    assert numbers.parse(form) == form
    for other in (f"{value:,f}", f"{value:e}", f"{spelled}000", f" {spelled}", spelled.replace("-", "−")):
        assert numbers.parse(other) == form


@REPEATABLE
@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15))
def test_different_numbers_have_different_forms(a: int, b: int) -> None:
    assert (numbers.parse(str(a)) == numbers.parse(str(b))) == (a == b)
    assert numbers.last(f"first {a} then {b}") == numbers.parse(str(b))
    assert list(numbers.scan(f"{a} and {b}")) == [str(a), str(b)]


@REPEATABLE
@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_reduced(a: int, b: int) -> None:
    form = numbers.parse(f"{a}/{b}")
    assert form == numbers.parse(f"{3 * a}/{3 * b}")
    value = Fraction(form or "nothing")
    assert value == Fraction(a, b)


def test_what_is_no_number() -> None:
    for text in ("", "x", "1/0", "1 2", "1.2.3", "3/4/2020", "--5", "infinity", "0x10", "12:30", "½x"):
        assert numbers.parse(text) is None, text
    assert list(numbers.scan("v1.2.3 and H2O, in 3/4/2020, 3rd of 5kg")) == ["3", "4", "2020", "3", "5"]


# --- quality ----------------------------------------------------------------------------------------------------------

PROSE = "The sky is blue because air scatters short waves more than long ones. Sunsets are red for the same reason."
PYTHON = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ("", "x"),
        ("<think>hm</think>", "x"),
        ("```python\ndef add(a, b)\n    return\n```", PYTHON),
        ("```python\ndef add(a, b):\n    return a + b", PYTHON),
        ("```json\n{'a': 1}\n```", '```json\n{"a": 1}\n```'),
        ('{"a": 1, "b"', '{"a": 1}'),
        ("The sky is blue because " * 40, PROSE),
        ("I see a bird over there.\n" * 8, PROSE),
        (f"{PROSE} " * 5, PROSE),  # one line, and a period longer than a run's: only its n-grams show it
        ("a-word-of-more-than-forty-characters-is-no-run\n" * 7, "a-word-of-more-than-forty-characters-is-no-run"),
        ("ha" * 300, "ha"),
        ("天" * 300, "天"),
        (f"{PROSE}<|im_end|>", PROSE),
        (f"{PROSE} And then the", PROSE),
        (f"<think>{PROSE}", PROSE),
    ],
)
def test_a_fault_costs_quality(worse: str, better: str) -> None:
    assert quality(worse, STOP) < quality(better, STOP) <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "42",
        "Yes.",
        PROSE,
        PYTHON,
        f"{PROSE}\n\nThat is all there is to it, and it was known in 1871",
        "- apples\n- pears\n- plums\n- figs\n- nuts\n- dates\n- limes",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
        "----------------------------------------",
        "1000000000000000000000000",
        "Use `x = {` to begin.",
        "```\nno language, no claim {\n```",
        "```python\nprint('\\d')  # an escape that the parser warns of\n```",
        "<think>loop loop loop loop loop loop loop loop</think>Done.",
    ],
)
def test_form_without_fault_has_full_marks(text: str) -> None:
    assert quality(text, STOP) == 1.0


def test_length_alone_never_counts() -> None:
    sentences = [f"Fact {i} is about {chr(97 + i % 26)}{i * 7919 % 1000} and {i * 31 % 977}." for i in range(200)]
    assert {quality(" ".join(sentences[:n]), STOP) for n in (1, 5, 50, 200)} == {1.0}


def test_what_was_cut_off_is_worth_less() -> None:
    for reason in (FinishReason.LENGTH, FinishReason.DEADLINE, FinishReason.CANCELLED):
        assert quality(PROSE, reason) == 0.5
    assert quality("ok", FinishReason.TOOL_CALLS) == 1.0


def test_quality_under_a_schema() -> None:
    def score(text: str, schema: str = SCHEMA) -> float:
        return quality(text, STOP, json_schema=schema)

    assert score('{"answer": 4}') == score('```json\n{"answer": 4}\n```') == 1.0
    for bad in ("4", "four", '{"result": 4}', '{"answer": 4', "[1]"):
        assert score(bad) < 0.5, bad
    assert score('"a"', '{"enum": ["a", "b"]}') > score('"c"', '{"enum": ["a", "b"]}')
    assert score('"a"', '{"type": "string"}') > score("1", '{"type": "string"}')
    assert score("{}", "no schema") == 1.0


# --- ballots ----------------------------------------------------------------------------------------------------------


def candidate(text: str, logprob: float = -0.5, calls: tuple[ToolCall, ...] = ()) -> Candidate:
    reason = FinishReason.TOOL_CALLS if calls else STOP
    return Candidate(1, "a", text, 3, logprob, reason, 1.0, calls)


def test_ballot() -> None:
    made = ballot(candidate("It is 7."), Strategy.MAJORITY, question=COUNT)
    assert (made.key, made.weight, made.quality) == ("7", 1.0, 1.0)
    # No key where one was asked for: the text itself is what others may agree with.
    assert ballot(candidate("No idea."), Strategy.MAJORITY, question=COUNT).key == "no idea"
    # Similarity compares whole texts: the number at the end of one is not all of it.
    assert ballot(candidate("It is 7."), Strategy.SIMILARITY, question=COUNT).key == "it is 7"
    assert ballot(candidate("<think>7</think> "), Strategy.SIMILARITY).key == ""
    assert ballot(candidate(""), Strategy.MAJORITY).quality == 0.0
    fenced = ballot(candidate(PYTHON), Strategy.QUALITY)
    assert fenced.weight == 1.0
    for strategy in (Strategy.MAJORITY, Strategy.SIMILARITY, Strategy.QUALITY, Strategy.FASTEST):
        assert ballot(candidate("x", logprob=-9.0), strategy).weight == 1.0


def test_ballot_of_a_call() -> None:
    good = ballot(candidate("", calls=(ToolCall("f", '{"a": 1}'),)), Strategy.SIMILARITY)
    assert good.key == 'tool:f({"a":1})'
    assert good.quality == 1.0
    bad = ballot(candidate("", calls=(ToolCall("f", '{"a": 1'),)), Strategy.MAJORITY)
    half = ballot(candidate("", calls=(ToolCall("f", "[]"), ToolCall("g", "{}"))), Strategy.MAJORITY)
    assert 0.0 < bad.quality < half.quality < 1.0


@REPEATABLE
@given(st.floats())
@example(math.nan)
@example(math.inf)
@example(-math.inf)
@example(5.0)
def test_confidence_is_a_weight(logprob: float) -> None:
    weight = ballot(candidate("7", logprob), Strategy.CONFIDENCE).weight
    assert 0.0 < weight <= 1.0
    assert weight * 2**40 == int(weight * 2**40)
    if not math.isnan(logprob):
        expected = math.exp(min(0.0, logprob) / CONFIDENCE_TEMPERATURE)
        assert weight == pytest.approx(expected, abs=2**-40)
        assert confidence_weight(logprob - 1) <= weight


def test_confidence_shares_are_those_of_a_softmax() -> None:
    logprobs = [-0.1, -0.35, -0.9]
    weights = [confidence_weight(each) for each in logprobs]
    exponents = [each / CONFIDENCE_TEMPERATURE for each in logprobs]
    softmax = [math.exp(each) / sum(map(math.exp, exponents)) for each in exponents]
    assert [weight / sum(weights) for weight in weights] == pytest.approx(softmax, abs=1e-9)


# --- anything at all --------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    r"""answer : Answer: \boxed{ { } [ " $ - − . , / 1 23 1e ٣ ½ (B) A is ``` ```python json #### \frac{1} \text{ % not
    <think> </think> tool: million ×10^ ** \ eleven …""".split()
    + "\n|answer is | |\x00|\ud800|\u0301|\ufdfa|\u202f".split("|")
)
TEXTS = st.text() | st.lists(PIECES, max_size=30).map("".join)


@settings(REPEATABLE, max_examples=250)
@given(TEXTS, TEXTS | st.sampled_from([COUNT, CHOICE, INLINE]), TEXTS | st.just(SCHEMA) | st.just(""), TEXTS)
def test_nothing_raises_and_only_blank_text_has_no_key(text: str, question: str, schema: str, arguments: str) -> None:
    key = answer_key(text, question=question, json_schema=schema)
    assert key == answer_key(text, question=question, json_schema=schema)
    if not text.strip():
        assert key == ""
    elif "</think>" not in text:
        assert key
    assert not key.startswith("tool:")
    assert answer_key(text, tool_calls=(ToolCall(question, arguments),)).startswith("tool:")
    for reason in FinishReason:
        assert 0.0 <= quality(text, reason, json_schema=schema) <= 1.0
    assert resolve(Strategy.AUTO, (Message("user", question),), (), schema) in (
        Strategy.MAJORITY,
        Strategy.SIMILARITY,
    )
    for strategy in Strategy:
        made = ballot(candidate(text, calls=(ToolCall(text, arguments),) * (strategy == "quality")), strategy)
        assert 0.0 < made.weight <= 1.0
        assert 0.0 <= made.quality <= 1.0


@REPEATABLE
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_the_key_of_json_does_not_depend_on_its_layout(value: object) -> None:
    compact = answer_key(json.dumps(value), json_schema="{}")
    assert compact == answer_key(json.dumps(value, indent=2, ensure_ascii=False), json_schema="{}")


MEGABYTE = {
    "a": "a",
    "digits": "1",
    "number after number": "1 ",
    "minus": "-",
    "stars": "*",
    "blank": " ",
    "lines": "\n",
    "open boxes": "\\boxed{",
    "answers": "answer: ",
    "answer to": "answer to ",
    "answer lines": "answer:\n",
    "lists": "[",
    "objects": '{"a":',
    "choices": "(B) ",
    "groups": "1,111",
    "fractions": "1/",
    "exponents": "1e",
    "powers": "1 x 10^",
    "arabic": "٤",
    "marks": "\u0301\u0323",
    "surrogates": "\ud800",
    "fences": "```\n",
    "bold": "**B",
    "hashes": "#### 1\n",
    "text in an answer": "answer: \\text{",
    "words": "nine ",
    "apostrophes": "1'111",
    "calls": "f(a, b",
    "numbered": "1. a\n",
}


@pytest.mark.parametrize("name", MEGABYTE)
def test_a_megabyte_of_anything_is_read_in_time(name: str) -> None:
    unit = MEGABYTE[name]
    text = unit * (2**20 // len(unit.encode("utf-8", "surrogatepass")))
    start = time.process_time()
    if "B" in unit:
        assert answer_key(text, question=CHOICE) == "B"
    assert answer_key(text, question=COUNT, json_schema=SCHEMA) or not text.strip()
    assert 0.0 <= quality(f"```python\n{text}", STOP) <= 1.0
    has_key(text)
    # Linear work takes a second of a slow core; anything quadratic takes an hour.
    assert time.process_time() - start < 60.0


@pytest.mark.parametrize(
    "code", ["(" * 60000, "1+" * 30000 + "1", "-" * 60000 + "1", "x" + ".a" * 30000, "\x00", "if 1:\n" * 99]
)
def test_code_that_no_parser_likes_is_only_bad_code(code: str) -> None:
    assert quality(f"```python\n{code}\n```", STOP) < 0.5


def test_code_too_long_to_parse_in_passing_is_held_for_code() -> None:
    lines = "\n".join(f"x{i} = {i * 7919 % 100_003}" for i in range(6000))
    assert quality(f"```python\n{lines}\n)\n```", STOP) == 1.0
    assert quality(f"```python\n{lines[:30000]}\n)\n```", STOP) < 0.5


def test_json_nested_without_end_is_only_text() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert answer_key(deep, json_schema=SCHEMA) == deep  # brackets only: nothing to strip them from
    assert answer_key("", tool_calls=(ToolCall("f", deep),)).startswith("tool:f(")
    assert quality(deep, STOP, json_schema=SCHEMA) < 0.5
