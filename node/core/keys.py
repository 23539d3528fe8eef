"""Reading an answer key out of a text, and what a question asks for.

All patterns are linear in the text: gaps are bounded, and a value is cut out with `find`, not matched. A megabyte
of hostile text costs well under a second (there is a test).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from node.core import numbers

# Only the start and the end of a very long question are read: the question itself stands at one of them.
_QUESTION_HEAD, _QUESTION_TAIL = 4000, 8000
# An option in a question: "(B) Paris" and "B) Paris" anywhere, "B. Paris" and "B: Paris" at the start of a line.
_OPTION_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*)?[(\[]?([A-Z])[)\].:][ \t]+(?=\S)", re.MULTILINE)
_OPTION_INLINE = re.compile(r"(?<![\w(\[])(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])\))[ \t]*(?=\S)")
_LOWER_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*)?[(\[]?([a-z])[)\].:][ \t]+(?=\S)", re.MULTILINE)
# Lower-case letters are options only where a choice is asked for; otherwise they are parts of an exercise.
_ASKS_CHOICE = re.compile(r"\b(?:which|choose|select|pick|option|correct|true|best)\b", re.IGNORECASE)

_QUANTITY = (
    "total|sum|product|quotient|remainder|number|amount|cost|price|average|mean|median|probability|"
    "percentage|percent|area|perimeter|circumference|volume|distance|speed|value|age|length|width|height|weight|"
    "profit|ratio|fraction|result|balance|salary|income|change|square[ ]root|factorial|gcd|lcm|derivative|integral"
)
_ASKS_NUMBER = re.compile(
    r"""
    \bhow\s+(?:many|much|old|far|tall|long|fast|heavy|high|deep|wide)\b
    | \b(?:what|which)\s+(?:year|number|percentage|percent|fraction)\b
    | \b(?:with|as|only|just|return|output|give|is)\s+(?:only\s+)?(?:a|an|the|one)\s+(?:single\s+)?(?:number|integer)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# These ask for a number only where the question gives numbers to reckon with.
_ASKS_TO_RECKON = re.compile(
    rf"""
    \b(?:calculate|compute|evaluate|simplify)\b
    | \bsolve\s+(?:for|the\s+equation|\d|[a-z]\b)
    | \b(?:what(?:'s|\s+is|\s+was|\s+are|\s+will\s+be)|find|determine|give)\s+(?:\w+\s+){{0,3}}(?:{_QUANTITY})\b
    | \b(?:add|subtract|multiply|divide)\s+-?\d
    | \bdifference\s+(?:between|of)\s+-?\d
    # "9/11", "3-4" and "1998-1999" are no sums: these two signs need room around them.
    | \d[\s)]{{0,3}}(?:[+*×÷·^]|\s[-/]\s)[\s(]{{0,3}}-?\d
    | \d\s+(?:plus|minus|times|divided\s+by|multiplied\s+by|percent\s+of)\s+\d
    | \d%\s+of\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# A line that is an expression to be worked out, with or without "what is".
_ARITHMETIC = re.compile(
    r"^\W{0,4}(?:(?:what(?:'s|[ ]is|[ ]does)|how[ ]much[ ]is|calculate|compute|evaluate|solve|simplify|work[ ]out)\b"
    r"[ \t:]{0,4})?[ \t(√-]{0,8}\d[\d \t.,()]{0,40}[-+*/×÷·^%x][\d \t.,()+*/×÷·^%x√-]{0,400}"
    r"(?:(?:=|equals?)[ \t]{0,4})?\??[ \t]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)
# A task to write something, at the start of a sentence: its numbers and choices are content, not an answer.
_ASKS_TO_WRITE = re.compile(
    r"(?:^|[.!?:;\n][ \t]*)(?:please\s+|(?:can|could|would)\s+you\s+(?:please\s+)?)?"
    r"(?:write|implement|explain|describe|summari[sz]e|translate|rewrite|draft|compose|refactor|discuss|brainstorm)\b"
    r"(?!\s+(?:your|the\s+(?:final\s+)?answer|only|just|down|it|each|all)\b)",
    re.IGNORECASE,
)
_ASKS_FOR_LINE = re.compile(r"\banswer[ \t]{0,2}[:：]|\\boxed\b|####", re.IGNORECASE)

_ANSWER = re.compile(
    r"(?<![^\W_])answer(?:[ \t]+to[^\n.:?]{1,60}?)?[ \t*_]{0,4}"
    r"(?P<link>[:：=]|(?:is|was|would[ ]be|equals)(?![^\W_])[ \t*_]{0,4}:?)[ \t*_]{0,4}",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^####[ \t]+(?=[-+$€£]?[.]?\d)", re.MULTILINE)  # the last line of a GSM8K solution
_BOXED = "\\boxed{"
# How many answer marks are tried, from the end, before the text is held to have none: the last may be cut off.
_TRIES = 8

_LATEX_WRAP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s?\{([^{}]{0,200})\}")
_LATEX_FRAC = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}")
_LATEX_NOISE = re.compile(r"\\[()\[\],!;: ]|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\(?=[%$#&_])")

_LETTER_ALONE = re.compile(r"\W{0,6}(?:option|choice|answer)?\W{0,4}([A-Za-z])\W{0,6}", re.IGNORECASE)
_LETTER_FIRST = re.compile(
    r"[\s*_`$]{0,6}(?:(?:option|choice)[ \t]+)?(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:*\]])(?!\w)", re.IGNORECASE
)
# A letter that is said to be the answer. A lower-case one needs a mark after it or nothing: "the answer is a city".
_LETTER_NAMED = re.compile(
    r"\b(?:answer|option|choice|pick|choose|select|go[ ]with)(?:[ \t]+is|:)?[ \t:*_(\[]{1,6}(?:option[ \t]+)?"
    r"((?-i:[A-Z])(?![\w'’])|[a-z](?=[)\].:,;!*_]|[ \t]*$))"
    r"|(?<!\w)((?-i:[A-Z]))[)\]*_]{0,3}[ \t]+is[ \t]+(?:the[ \t]+)?(?:correct|right|best)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER_BRACKETED = re.compile(r"(?<![\w(\[])(?:[(\[]([A-Z])[)\]]|([A-Z])\)|\*\*([A-Z])[.:]?\*\*)(?!\w)", re.IGNORECASE)
_LETTER_BARE = re.compile(r"(?<![\w'’])([B-HJ-Z])(?![\w'’])")

_WORDS_ONLY = re.compile(r"[\W_]+")
_TOLD = 4000  # characters of a text that are searched for an option's text

_SPACE = re.compile(r"\s+")
_EDGE_LEFT = " \t*_`\"'“”‘’«»#>.,;:!?–—•()[]{}…"
_EDGE_RIGHT = " \t*_`\"'“”‘’«»>.,;:!?()[]{}…"
_VERDICT = re.compile(r"(yes|no|true|false)[ ]?[,.;:!–—(-]")
# More combining marks on one letter than any script has: their canonical order costs a sort, so they are cut
# (compare UAX 15, stream-safe text format, which allows 30).
_MARKS = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question asks for. `options` maps the letters offered to their normalised texts, empty when unknown."""

    options: dict[str, str]
    number: bool
    line: bool

    @property
    def keyed(self) -> bool:
        """Whether an answer to it can be checked by exact match."""
        return bool(self.options) or self.number or self.line


def asked(question: str) -> Asked:
    """Read from a question whether it offers lettered options, asks for a number, or demands an `answer:` line."""
    if len(question) > _QUESTION_HEAD + _QUESTION_TAIL:
        question = f"{question[:_QUESTION_HEAD]}\n{question[-_QUESTION_TAIL:]}"
    return _asked(question)


@lru_cache(maxsize=64)  # every candidate of a vote asks it again
def _asked(question: str) -> Asked:
    question = numbers.plain_digits(question)
    line = _ASKS_FOR_LINE.search(question) is not None
    offered = _options(question)
    number = False
    if not offered and not _ASKS_TO_WRITE.search(question):
        number = (
            _ASKS_NUMBER.search(question) is not None
            or _ARITHMETIC.search(question) is not None
            or (_ASKS_TO_RECKON.search(question) is not None and re.search(r"\d", question) is not None)
        )
    return Asked(offered, number, line)


def marked(text: str, ask: Asked) -> str | None:
    """The key that the last `answer:` line, `\\boxed{}` or `#### ` line of a text states; None without one.

    "The answer is …" in running text counts only where what follows at once is what was asked for: a number or one of
    the letters offered.
    """
    for value, running in _values(text):
        if running:
            found = _letter_first(value, ask) if ask.options else None
            if found is None and ask.number:
                found = numbers.parse_start(_clean(value))
        else:
            found = _reduce(value, ask)
        if found is not None:
            return found
    return None


def choice(text: str, options: dict[str, str]) -> str | None:
    """The one letter of `options` that a text chooses, or the only one whose text it tells; None when there is none."""
    if (alone := _LETTER_ALONE.fullmatch(text[:64])) and len(text) <= 64 and alone[1].upper() in options:
        return alone[1].upper()
    named = _last_letter(_LETTER_NAMED, text, options)
    if named is not None:
        return named
    lines = text.strip().splitlines()
    for line in (lines[-1], lines[0]) if lines else ():
        if (first := _LETTER_FIRST.match(line)) and (first[1] or first[2]).upper() in options:
            return (first[1] or first[2]).upper()
    for pattern in (_LETTER_BRACKETED, _LETTER_BARE):
        if (found := _last_letter(pattern, text, options)) is not None:
            return found
    said = f" {_WORDS_ONLY.sub(' ', normalise(text[:_TOLD]))} "
    worded = {letter: _WORDS_ONLY.sub(" ", option).strip() for letter, option in options.items()}
    told = [letter for letter, option in worded.items() if option and f" {option} " in said]
    return told[0] if len(told) == 1 else None


def normalise(text: str) -> str:
    """The text under NFKC and casefold, white space collapsed and punctuation at its edges dropped.

    A text that is one number as a whole is that number's canonical form; one of punctuation only stays as it is.
    """
    if (number := numbers.parse(text) if len(text) < 256 else None) is not None:
        return number
    folded = _nfkc(_nfkc(text).casefold())
    folded = _SPACE.sub(" ", folded).strip()
    return folded.lstrip(_EDGE_LEFT).rstrip(_EDGE_RIGHT) or folded


def _nfkc(text: str) -> str:
    if text.isascii():
        return text
    marks = [char for char in set(text) if char > "\x7f" and unicodedata.combining(char)]
    if marks:
        several = f"[{re.escape(''.join(sorted(marks)))}]"
        text = re.sub(f"({several}{{{_MARKS}}}){several}+", r"\1", text)
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def _options(question: str) -> dict[str, str]:
    """The options offered, a run of letters from A on, at least two; a later list replaces an earlier one."""
    best: dict[str, str] = {}
    patterns = [_OPTION_LINE, _OPTION_INLINE]
    if _ASKS_CHOICE.search(question):
        patterns.append(_LOWER_LINE)
    for pattern in patterns:
        heads = [(next(filter(None, m.groups())).upper(), m) for m in pattern.finditer(question)]
        run: dict[str, str] = {}
        for place, (letter, match) in enumerate(heads):
            if letter == "A":
                run = {}
            elif letter != chr(ord("A") + len(run)):
                continue
            end = heads[place + 1][1].start() if place + 1 < len(heads) else len(question)
            line_end = question.find("\n", match.end())
            end = min(end, line_end if line_end >= 0 else end)
            run[letter] = normalise(question[match.end() : min(end, match.end() + 400)])
            if len(run) >= 2:
                best = dict(run)
        if best:
            break
    return best


def _values(text: str) -> Iterator[tuple[str, bool]]:
    """What follows the last marks of an answer, the last first, and whether it is running text ("the answer is …")."""
    marks = [(m.end(), m["link"][0] not in ":：=") for m in _ANSWER.finditer(text)][-_TRIES:]
    marks += [(m.end(), False) for m in _HASHES.finditer(text)][-_TRIES:]
    at = len(text)
    for _ in range(_TRIES):
        at = text.rfind(_BOXED, 0, at)
        if at < 0:
            break
        marks.append((at, False))
    for start, running in sorted(marks, reverse=True)[:_TRIES]:
        if text.startswith(_BOXED, start):
            inner = _braced(text, start + len(_BOXED))
            if inner is not None:
                yield inner, False
            continue
        end = text.find("\n", start)
        value = text[start : end if end >= 0 else len(text)]
        if not value.strip(_EDGE_LEFT):
            rest = text[start:].lstrip(_EDGE_LEFT + "\r\n")
            value = rest.split("\n", 1)[0]
        if value.strip():
            yield value, running


def _braced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes it; None when it is cut off."""
    depth = 1
    for brace in re.finditer(r"\\[{}\\]|[{}]", text[start : start + 65536]):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return text[start : start + brace.start()]
    return None


def _reduce(value: str, ask: Asked) -> str | None:
    """The key of a value that a text states as its answer; None when nothing is left of it."""
    at = value.rfind(_BOXED)
    if at >= 0 and (inner := _braced(value, at + len(_BOXED))) is not None:
        value = inner
    value = _clean(value)
    if ask.options and (letter := choice(value, ask.options)) is not None:
        return letter
    if (number := numbers.parse(value)) is not None:
        return number.rstrip("%") if ask.number else number
    if ask.number:
        number = numbers.parse_word(value)
        if number is None and "=" in value:
            number = numbers.parse_start(value.rpartition("=")[2])
        found = number or numbers.parse_start(value) or numbers.last(value)
        if found is not None:
            return found
    said = normalise(value)
    if verdict := _VERDICT.match(said):
        return verdict[1]
    return said or None


def _clean(value: str) -> str:
    """A stated value without the Markdown and LaTeX around it."""
    if "\\" in value:
        value = _LATEX_WRAP.sub(r" \1", value)
        value = _LATEX_FRAC.sub(r"\1/\2", value)
        value = _LATEX_NOISE.sub("", value)
    value = value.strip().strip("*_`").strip()
    # Dollar signs are mathematics where they stand on both sides, money where they lead.
    while len(value) > 1 and value[0] == "$" == value.rstrip(".")[-1:] and len(value.rstrip(".")) > 1:
        value = value.rstrip(".")[1:-1].strip()
    return value.rstrip("*_` ")


def _letter_first(value: str, ask: Asked) -> str | None:
    value = value.lstrip(" *_`$(\"'“[")
    match = re.match(r"(?:(?:option|choice|letter)[ \t:*_(\[]{1,6})?([A-Z])(?![\w'’])", value, re.IGNORECASE)
    if match is None:
        return None
    # "The answer is a cat": an article, not a letter.
    article = match[1] in "aAI" and re.match(r"[ \t]+[a-z]", value[match.end() :]) is not None
    letter = match[1].upper()
    return letter if letter in ask.options and not article else None


def _last_letter(pattern: re.Pattern[str], text: str, options: dict[str, str]) -> str | None:
    found = None
    for match in pattern.finditer(text):
        letter = next(filter(None, match.groups())).upper()
        if letter in options:
            found = letter
    return found
