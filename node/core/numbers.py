"""Numbers in text: found, and written in one canonical form, so that equal values are equal strings.

Everything works on digits as text. Nothing is converted to `int` or `float` unless it is short: a model may write
a million digits or `1e400`, and neither the interpreter's limit on int conversion nor overflow may decide a vote.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

# Longest form written without an exponent, in characters. Longer values become digits and a power of ten.
_PLAIN = 64

# Where the last number of a long text is looked for first, in characters from its end.
_TAIL = 4096

_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CURRENCY = "$€£¥₹"

_FRACTION = r"(?<![\w./^])(?P<fs>[-+]?)(?P<fn>\d{1,18})[ ]?/[ ]?(?P<fd>\d{1,18})(?![\w/]|\.\d)"
_DECIMAL = (
    rf"(?<![\w.^])(?P<s1>[-+]?)(?:[{_CURRENCY}][ ]?(?P<s2>[-+]?))?"
    r"(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(?P<frac>\d+))?|\.(?P<bare>\d+))"
    r"(?:[eE](?P<exp>[-+]?\d+))?"
    r"(?:[ ]{0,2}(?:[x*×]|\\times|\\cdot)[ ]{0,2}10[ ]?\^[ ]?\{?(?P<power>[-+]?\d{1,9})\}?)?"
    r"(?:[ ](?P<scale>thousand|million|billion|trillion)(?![^\W_]))?"
)
# Compiled for ASCII digits: `plain_digits` has brought every other script's digits there.
_NUMBER = re.compile(rf"{_FRACTION}|{_DECIMAL}", re.IGNORECASE)
_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d{1,9})[ ](?P<num>\d{1,9})/(?P<den>\d{1,9})")
# White space as a separator: only where the whole text is one number, for "2020 300" may be two.
_SPACED = re.compile(r"[-+]?(?:[$€£¥₹][ ]?)?\d{1,3}(?:[ ]\d{3})+(?:\.\d+)?")
_DIGIT = re.compile(r"\d")
_LIST_MARKER = re.compile(r"^[ \t]*\d{1,3}[.)](?=[ \t]+\S)", re.MULTILINE)
# Typographic thousands separators: thin, no-break and figure spaces, apostrophes, underscores, LaTeX's "{,}" and "\,".
_GROUPING = re.compile(r"(?<=\d)(?:[\u2009\u202f\u00a0\u2007'’_]|\{,\}|\\,)(?=\d{3}(?!\d))")

_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90"}
_WORD = re.compile(rf"(?<![^\W_])(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![^\W_])", re.IGNORECASE)


def plain_digits(text: str) -> str:
    """The text with the decimal digits of every script, minus signs and digit grouping in their ASCII form."""
    if not text.isascii():
        table: dict[int, str] = {
            ord(char): str(unicodedata.decimal(char)) for char in set(text) if char > "\x7f" and char.isdecimal()
        }
        # Minus sign, small and full-width hyphen-minus; the full-width and Arabic separators.
        table |= {0x2212: "-", 0xFE63: "-", 0xFF0D: "-", 0xFF0B: "+", 0xFF0E: ".", 0xFF0C: ",", 0x66B: ".", 0x66C: ","}
        text = text.translate(table)
    return _GROUPING.sub("", text)


def parse(value: str) -> str | None:
    """The canonical form of a text that is one number as a whole, with currency sign or percent sign; else None.

    `1,234.50`, `$1234.5` and `1234.5` are one number, as are `+0`, `-0` and `0.0`, or `6/8` and `0.75`. A percent sign
    is kept: `5%` is not `5`.
    """
    value = plain_digits(value).strip()
    if mixed := _MIXED.fullmatch(value):
        whole, num, den = int(mixed["whole"]), int(mixed["num"]), int(mixed["den"])
        return _ratio(mixed["sign"], whole * den + num, den)
    percent = value.endswith("%")
    value = value.rstrip("%").rstrip() if percent else value.rstrip(f" {_CURRENCY}.")
    if _SPACED.fullmatch(value):
        value = value.replace(" ", "")
    match = _NUMBER.fullmatch(value)
    if match is None:
        return None
    found = _canonical(match)
    return f"{found}%" if found is not None and percent else found


def parse_start(value: str) -> str | None:
    """The canonical form of the number a text starts with, whatever follows it; else None."""
    match = _NUMBER.match(plain_digits(value).lstrip())
    return None if match is None else _canonical(match)


def parse_word(value: str) -> str | None:
    """The number that a text spells out as one English word, zero to twenty and the tens; else None."""
    return _WORDS.get(value.strip().casefold())


def scan(text: str) -> Iterator[str]:
    """All numbers of a text in their order, in canonical form. Markers of numbered lists are no numbers."""
    for match in _NUMBER.finditer(_LIST_MARKER.sub("", plain_digits(text))):
        found = _canonical(match)
        if found is not None:
            yield found


def last(text: str) -> str | None:
    """The last number of a text in canonical form, else the last one spelled out as a word, else None."""
    if len(text) <= _PLAIN and (whole := parse(text)) is not None:
        return whole.rstrip("%")
    text = plain_digits(text)
    if len(text) > _TAIL:
        # Numbers stand at the end of an answer; a long text is only read whole when its end has none.
        tail = text[-_TAIL:]
        start = re.search(r"\s", tail)
        if start is not None and (found := _last(tail[start.end() :])) is not None:
            return found
    if (found := _last(text)) is not None:
        return found
    words = _WORD.findall(text)
    return _WORDS[words[-1].casefold()] if words else None


def _last(text: str) -> str | None:
    if _DIGIT.search(text) is None:
        return None
    for body in (_LIST_MARKER.sub("", text), text):
        match = None
        for each in _NUMBER.finditer(body):
            match = each
        if match is not None and (found := _canonical(match)) is not None:
            return found
    return None


def _canonical(match: re.Match[str]) -> str | None:
    if match["fd"] is not None:
        return _ratio(match["fs"], int(match["fn"]), int(match["fd"]))
    negative = (match["s1"] == "-") != (match["s2"] == "-")
    whole = (match["whole"] or "").replace(",", "")
    frac = match["frac"] or match["bare"] or ""
    exponent = match["exp"] or "0"
    if len(exponent.lstrip("+-0")) > 9:
        # No place for such an exponent: zero stays zero, anything else keeps the spelling of its exponent.
        digits = (whole + frac).strip("0")
        sign = "-" if exponent.startswith("-") else ""
        return f"{'-' if negative else ''}{whole}.{frac}e{sign}{exponent.lstrip('+-0')}" if digits else "0"
    power = int(exponent) + int(match["power"] or 0) + _SCALES.get((match["scale"] or "").casefold(), 0)
    return _decimal(negative, whole, frac, power)


def _decimal(negative: bool, whole: str, frac: str, power: int) -> str:
    digits = (whole + frac).lstrip("0")
    power -= len(frac)
    stripped = digits.rstrip("0")
    if not stripped:
        return "0"
    power += len(digits) - len(stripped)
    point = len(stripped) + power  # where the decimal point stands, counted from the first digit
    sign = "-" if negative else ""
    if power >= 0 and point <= _PLAIN:
        return f"{sign}{stripped}{'0' * power}"
    if power < 0 and point > 0 and len(stripped) < _PLAIN:
        return f"{sign}{stripped[:point]}.{stripped[point:]}"
    if power < 0 and point <= 0 and -power < _PLAIN:
        return f"{sign}0.{'0' * -point}{stripped}"
    return f"{sign}{stripped}e{power}"


def _ratio(sign: str, num: int, den: int) -> str | None:
    if den == 0:
        return None
    common = math.gcd(num, den)
    num, den = num // common, den // common
    twos = fives = 0
    rest = den
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    negative = sign == "-"
    if rest != 1:
        return f"{'-' if negative and num else ''}{num}/{den}"
    places = max(twos, fives)  # a fraction that ends is written as a decimal, so that 3/4 is 0.75
    return _decimal(negative, str(num * 10**places // den), "", -places)
