"""Bare sums in many phrasings ("What is 17 * 23?"), worked where one step is too much. Standard library only."""

from __future__ import annotations

import random

from scripts.model.problems import Problem, is_held_out

_WORDS = {
    "+": (" + ", "+", " plus ", " + ", " and "),
    "-": (" - ", "-", " minus ", " - "),
    "*": (" * ", "*", " times ", " x ", "x", " × ", " multiplied by "),
    "/": (" / ", "/", " divided by ", " ÷ ", ":"),
}
_FRAMES = (
    "What is {e}?",
    "What is {e}?",
    "what is {e}",
    "What's {e}?",
    "what's {e}?",
    "{e}",
    "{e}=?",
    "{e} = ?",
    "{e} =",
    "{e}=",
    "{e}?",
    "Calculate {e}.",
    "Calculate {e}",
    "calculate {e}",
    "Compute {e}.",
    "compute {e}",
    "How much is {e}?",
    "how much is {e}",
    "Please compute {e}.",
    "Can you work out {e}?",
    "Work out {e}.",
    "What does {e} make?",
    "Solve {e}",
    "Solve: {e}",
    "Tell me {e}.",
    "Hi, what is {e}?",
    "Hello! How much is {e}?",
    "What is the result of {e}?",
    "What do you get for {e}?",
)


def sum_problem(rng: random.Random, kept: bool = False) -> Problem:
    """A bare sum: for training, or (`kept`) one of those that training never sees."""
    while True:
        numbers, ops = _draw(rng)
        key = "sum " + "".join(str(n) + o for n, o in zip(numbers, [*ops, ""], strict=True))
        # Tables up to 12 and sums of two small numbers are for learning by heart; all of them are trained on.
        by_heart = len(ops) == 1 and max(numbers[1], numbers[0] if ops != ["/"] else 0) <= 12
        if by_heart if kept else (is_held_out(key) and not by_heart):
            continue
        if kept and not is_held_out(key):
            continue
        lines, answer = work(numbers, ops)
        if lines is None or abs(answer) > 2000:
            continue
        style = rng.randrange(7)
        expression = str(numbers[0])
        for o, n in zip(ops, numbers[1:], strict=True):
            forms = _WORDS[o]
            expression += forms[style % len(forms)] + str(n)
        if "and" in expression.split():
            question = rng.choice(("What is the sum of {e}?", "Add {e}.", "Add {e}")).format(e=expression)
            if len(ops) > 1:
                continue
        else:
            question = rng.choice(_FRAMES).format(e=expression)
        return Problem(question, answer, max(1, len(lines)), "\n".join([*lines, f"answer: {answer}"]), key)


def drill(rng: random.Random) -> tuple[str, str]:
    """Several small sums at once and their results, one a line: much practice in few tokens."""
    sums: list[tuple[int, str, int]] = []
    for _ in range(rng.randint(3, 10)):
        op = rng.choices("+-*/", (4, 4, 5, 1))[0]
        a, b = rng.randint(2, rng.choice((20, 99, 99, 500))), rng.randint(2, rng.choice((20, 99)))
        if op == "*":
            a, b = rng.randint(2, 9), rng.randint(2, rng.choice((12, 40, 99)))
            a, b = rng.choice(((a, b), (b, a), (a * 10, b)))
        elif op == "/":
            b = rng.randint(2, 12)
            a = b * rng.randint(2, 30)
        elif op == "-":
            a, b = max(a, b), min(a, b)
        by_heart = op in "*/" and min(a, b) <= 12
        if by_heart or not is_held_out(f"sum {a}{op}{b}"):
            sums.append((a, op, b))
    spaced = rng.choice(("{}{}{}", "{}{}{}", "{} {} {}"))
    joined = rng.choice((", ", "; ", "\n")).join(spaced.format(*s) for s in sums)
    asked = rng.choice(("Compute {}", "Calculate {}", "{}", "What are {}?", "Compute: {}")).format(joined)
    return asked, "\n".join(f"{a}{op}{b}={work([a, b], [op])[1]}" for a, op, b in sums)


def _draw(rng: random.Random) -> tuple[list[int], list[str]]:
    kind = rng.choices(("+", "-", "*", "**", "/", "+++", "mix"), (4, 4, 5, 3, 2, 3, 2))[0]
    n = lambda: rng.randint(1, rng.choice((12, 50, 99, 99, 99, 999)))  # noqa: E731
    if kind == "+":
        return [n(), n()], ["+"]
    if kind == "-":
        a, b = n(), n()
        return ([a, b] if rng.random() < 0.1 else [max(a, b), min(a, b)]), ["-"]
    if kind == "*":
        pair = [rng.randint(2, 12), rng.randint(2, rng.choice((12, 40, 99)))]
        rng.shuffle(pair)
        return pair, ["*"]
    if kind == "**":
        return [rng.randint(11, 99), rng.randint(11, rng.choice((30, 99)))], ["*"]
    if kind == "/":
        b, q = rng.randint(2, 12), rng.randint(2, rng.choice((12, 30)))
        return [b * q, b], ["/"]
    small = lambda: rng.randint(1, rng.choice((20, 99)))  # noqa: E731
    if kind == "+++":
        count = rng.choice((3, 3, 3, 4))
        return [small() for _ in range(count)], [rng.choice("+-") for _ in range(count - 1)]
    a, b, c = rng.randint(2, 60), rng.randint(2, 12), rng.randint(2, 12)
    return ([a, b, c], [rng.choice("+-"), "*"]) if rng.random() < 0.5 else ([b, c, a], ["*", rng.choice("+-")])


def work(numbers: list[int], ops: list[str]) -> tuple[list[str], int]:
    """The worked lines (`x op y=z`) of an expression, products first, and its value."""
    numbers, ops, lines = list(numbers), list(ops), []
    for group in ("*/", "+-"):
        i = 0
        while i < len(ops):
            if ops[i] not in group:
                i += 1
                continue
            made, value = _one(numbers[i], ops[i], numbers[i + 1])
            lines += made
            numbers[i : i + 2], ops[i : i + 1] = [value], []
    return lines, numbers[0]


def _one(a: int, op: str, b: int) -> tuple[list[str], int]:
    """One operation; a two-digit factor and a sum of hundreds are taken apart first."""
    if op == "*" and a > 12 and b > 12:
        tens, ones = b // 10 * 10, b % 10
        if not ones:
            return [f"{a}*{b // 10}={a * b // 10}", f"{a}*{b}={a * b}"], a * b
        return [f"{a}*{tens}={a * tens}", f"{a}*{ones}={a * ones}", f"{a * tens}+{a * ones}={a * b}"], a * b
    if op == "+" and a > 99 and b > 99:
        (h, x), (g, y) = divmod(a, 100), divmod(b, 100)
        return [f"{h}00+{g}00={h + g}00", f"{x}+{y}={x + y}", f"{h + g}00+{x + y}={a + b}"], a + b
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op]
    return [f"{a}{op}{b}={value}"], value
