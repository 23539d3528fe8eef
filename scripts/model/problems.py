"""Arithmetic word problems with worked steps, and the held-out ones that training never sees.

Difficulty comes from the number of operations (1 to 10), from two-digit numbers and products (three-digit numbers and
two-digit factors in the `big` ones), and from sentences with numbers that do not matter. No worked step is ever wrong.
Standard library only.
"""

from __future__ import annotations

import hashlib
import random
import re

from scripts.model.families import LIMIT, Problem, machine, number, product, shopping, together
from scripts.model.words import EDIBLE, HE, ITEMS, NAMES, PACKS, SHE, THINGS, made_up

MOST_STEPS = 10  # operations of the `big` problems
HELD_OUT_STEPS = (4, 5, 6, 7, 8)  # operations of the problems that `held_out` yields by default, equally often
PLAIN_STEPS = (3, 4, 5, 6, 7)  # of the plainer held-out problems
TRAIN_STEPS = ((1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 4, 4, 3, 3))


def is_held_out(key: str) -> bool:
    """Whether problems with this structure and these numbers are kept from training: one key in sixteen."""
    return hashlib.sha256(key.encode()).digest()[0] < 16


def held_out(n: int = 300, seed: int = 1, steps: tuple[int, ...] = HELD_OUT_STEPS, big: bool = True) -> list[Problem]:
    """`n` different word problems that training never used; the same arguments give the same list.

    By default those hard enough for a vote to matter: `big` numbers and products. Without, they are plainer.

    Training rejects every problem whose key `is_held_out`, whatever its seed, so no seed can collide with it.
    """
    rng = random.Random(f"held-out {seed}")
    found: dict[str, Problem] = {}
    while len(found) < n:
        candidate = draw(rng, steps[len(found) % len(steps)], big)
        if candidate is not None and is_held_out(candidate.key):
            found.setdefault(candidate.key, candidate)
    return list(found.values())


def problem(rng: random.Random, big: bool = False) -> Problem:
    """A word problem for training: never a held-out one. `big` ones have more operations and larger numbers."""
    while True:
        steps = rng.randint(3, MOST_STEPS) if big else rng.choices(*TRAIN_STEPS)[0]
        candidate = draw(rng, steps, big)
        if candidate is not None and not is_held_out(candidate.key):
            return candidate


def draw(rng: random.Random, steps: int, big: bool = False) -> Problem | None:
    """One problem with exactly `steps` operations, or None where the draw came out otherwise."""
    if big:
        made = _Story.make(rng, steps, big)
        return made if made is not None and made.steps == steps and 0 <= made.answer <= LIMIT else None
    families = [_Story.make] * 7 + ([shopping] if 2 <= steps <= 5 else []) + ([together] if 2 <= steps <= 5 else [])
    families += [machine] if 2 <= steps <= 4 else []
    made = rng.choice(families)(rng, steps)
    return made if made is not None and made.steps == steps and 0 <= made.answer <= LIMIT else None


def _distractor(rng: random.Random, who: str, items: str) -> str:
    """A sentence with a number that the answer does not need."""
    x = rng.randint(2, 99)
    other = rng.choice([n for n in NAMES if n != who])
    return rng.choice(
        (
            f"{other} has {x} {rng.choice([i for i in ITEMS if i != items])}.",
            f"{other} is {x} years old.",
            f"{who} is {x} years old." if who != "I" else f"I am {x} years old.",
            f"It is {x} degrees outside.",
            f"The shop opens at {rng.randint(6, 11)}.",
            f"The bus takes {x} minutes.",
            f"{other} lives at number {x}.",
        )
    )


# Third person -> (first person, past), for the first word of a clause; other verbs are regular.
_FORMS = {
    "has": ("have", "had"),
    "starts": ("start", "started"),
    "buys": ("buy", "bought"),
    "finds": ("find", "found"),
    "gets": ("get", "got"),
    "wins": ("win", "won"),
    "picks": ("pick", "picked"),
    "gives": ("give", "gave"),
    "loses": ("lose", "lost"),
    "sells": ("sell", "sold"),
    "breaks": ("break", "broke"),
    "uses": ("use", "used"),
    "eats": ("eat", "ate"),
    "drops": ("drop", "dropped"),
    "spends": ("spend", "spent"),
    "lends": ("lend", "lent"),
    "takes": ("take", "took"),
    "throws": ("throw", "threw"),
    "doubles": ("double", "doubled"),
    "triples": ("triple", "tripled"),
    "makes": ("make", "made"),
}


_MORE = ("makes {n} more", "collects {n}", "receives {n}", "earns {n}", "adds {n}", "takes {n} more", "orders {n} more")
_LESS = ("drops {n}", "spends {n}", "donates {n}", "lends {n} to a friend", "removes {n}", "gives away {n}")
_SPELT = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _spelt(text: str) -> str:
    """Numbers up to twelve as words."""
    return re.sub(r"\b\d+\b", lambda m: _SPELT[int(m[0])] if int(m[0]) <= 12 else m[0], text)


class _Story:
    """Someone has things; things happen to them; how many are there in the end?"""

    def __init__(self, rng: random.Random, big: bool) -> None:
        self.rng = rng
        self.big = big
        self.hard = rng.random() < 0.65
        self.who, self.other = rng.sample(NAMES, 2)
        if rng.random() < 0.12:
            self.who = made_up(rng, True)
        self.they = "he" if self.who in HE or (self.who not in SHE and rng.random() < 0.5) else "she"
        self.past = rng.random() < 0.25
        self.first = rng.random() < 0.15
        if self.first:
            self.who = self.they = "I"
        self.items = rng.choice(ITEMS) if rng.random() < 0.85 else rng.choice((*THINGS, made_up(rng, False))) + "s"
        self.total = 0
        self.clauses: list[str] = []
        self.lines: list[str] = []
        self.key: list[str] = []
        self.steps = 0

    @staticmethod
    def make(rng: random.Random, steps: int, big: bool = False) -> Problem | None:
        """A story of exactly `steps` operations, or None."""
        story = _Story(rng, big)
        opening = story._open(steps)
        question = ""
        while story.steps < steps:
            left = steps - story.steps
            if left == 1 and story.steps and rng.random() < 0.15:
                question = story._share()
                if question:
                    break
            if not story._event(left):
                return None
        if not question:
            do = "do" if story.first else "does"
            question = rng.choice(
                (
                    f"How many {story.items} {do} {story.who} have now?",
                    f"How many {story.items} {do} {story.they} have in the end?",
                    f"How many {story.items} {do} {story.they} have left?" if story.clauses else "How many is that?",
                    f"How many {story.items} are left?" if story.clauses else f"How many {story.items} is that?",
                    f"How many {do} {story.they} have now?",
                )
            )
        if (
            len(story.clauses) in (1, 2, 3)
            and opening.count(".") == 1
            and question.startswith("How")
            and rng.random() < 0.2
        ):
            joined = rng.choice((" and ", ", ", f" and {story.they} ")).join(["", *story.clauses])
            text = f"If {opening[:-1]}{joined}, {question[0].lower()}{question[1:]}"
        else:
            text = f"{opening} {story._join()} {question}".replace("  ", " ")
        if rng.random() < 0.08:
            text = _spelt(text)
        work = "\n".join([*story.lines, f"answer: {story.total}"])
        return Problem(text, story.total, story.steps, work, " ".join(story.key))

    def _say(self, clause: str) -> str:
        """The clause in this story's person and tense."""
        word, _, rest = clause.partition(" ")
        if word != "times" and (self.past or self.first):
            base = word[:-1]
            forms = _FORMS.get(word, (base, base + ("d" if base.endswith("e") else "ed")))
            word = forms[1] if self.past else forms[0]
        return f"{word} {rest}" if rest else word

    def _open(self, steps: int) -> str:
        rng, who, items = self.rng, self.who, self.items
        has = self._say("has")
        kind = rng.choices(("has", "two", "packs", "times", "more"), (5, 2, 2, 1, 1))[0] if steps > 1 else "has"
        a, b = number(rng, self.hard, self.big), number(rng, self.hard, self.big)
        if kind == "two":
            one, two = rng.sample(("red", "blue", "green", "white", "black", "old", "new", "big", "small"), 2)
            self._step(f"{a} {one} and {b} {two}", a, "+", b)
            return f"{who} {has} {a} {one} {items} and {b} {two} {items}."
        if kind == "packs":
            k, m = product(rng, self.hard, self.big)
            packs = rng.choice(PACKS)
            k = k % 10 + 2 if k > 12 and steps < 3 else k
            self._step(f"{k} {packs} of {m}", k, "*", m)
            if rng.random() < 0.4:
                return f"{who} {has} {k} {packs} with {m} {items} each."
            return f"{who} {has} {k} {packs} of {m} {items}."
        if kind == "times":
            k, m = product(rng, self.hard, self.big)
            k = k % 8 + 2 if k > 12 else k
            self._step(f"{k} times as many", m, "*", k)
            return f"{self.other} has {m} {items}. {who} {has} {k} times as many."
        if kind == "more":
            self._step(f"{b} more than {a}", a, "+", b)
            return f"{self.other} has {a} {items}. {who} {has} {b} more than {self.other}."
        self.total = a
        self.key.append(f"={a}")
        return f"{who} {rng.choice((has, has, has, self._say('starts with')))} {a} {items}."

    def _step(self, quote: str, x: int, op: str, y: int, then: str = "") -> None:
        """Note one operation x op y, quoting the clause it uses; `then` (+ or -) applies the result to the total."""
        result = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[op]
        shown = [f"{x}{op}{y}={result}"]
        if op == "*" and x > 12 and y > 12:
            tens, ones = x * (y // 10 * 10), x * (y % 10)
            shown = [f"{x}*{y // 10 * 10}={tens}", f"{x}*{y % 10}={ones}", f"{tens}+{ones}={result}"]
        line = f"{quote}: {', '.join(shown)}"
        self.steps += len(shown)
        self.key.append(f"{op}{x},{y}" if then or self.steps == len(shown) else f"{op}{y}")
        if then:
            after = self.total + result if then == "+" else self.total - result
            line += f", {self.total}{then}{result}={after}"
            self.steps += 1
            self.key.append(then)
            result = after
        self.lines.append(line)
        self.total = result

    def _event(self, left: int) -> bool:
        """Let one thing happen that needs at most `left` operations; False where nothing fits."""
        rng = self.rng
        for _ in range(12):
            kind = rng.choices(("add", "take", "packs in", "packs out", "times", "half"), (6, 6, 3, 2, 1.5, 0.7))[0]
            n = number(rng, self.hard, self.big)
            if kind == "add" and self.total + n <= LIMIT:
                verb = rng.choice(
                    ("buys {n} more", "finds {n}", "gets {n}", "wins {n}", "picks {n} more", "buys {n}", *_MORE)
                )
                verb = self._say(verb)
                tail = rng.choice(("", "", "", f" from {self.other}")) if verb.startswith(("get", "got")) else ""
                quote = verb.replace(" more", "").format(n=n)
                self._step(quote, self.total, "+", n)
                self.clauses.append(verb.format(n=n) + tail)
                return True
            if kind == "take" and n <= self.total:
                eats = "eats {n}" if self.items in EDIBLE else "sells {n}"
                verb = rng.choice(
                    ("gives {n}", "loses {n}", "sells {n}", "breaks {n}", "uses {n}", "throws {n} away", eats, *_LESS)
                )
                verb = self._say(verb)
                tail = (
                    rng.choice((f" to {self.other}", " away"))
                    if verb.startswith(("give", "gave")) and "away" not in verb
                    else ""
                )
                self._step(verb.format(n=n), self.total, "-", n)
                self.clauses.append(verb.format(n=n) + tail)
                return True
            if kind.startswith("packs") and left >= 2:
                k, m = product(rng, self.hard, self.big)
                packs = rng.choice(PACKS)
                if k > 12 and m > 12 and left < 4:
                    continue
                inward = kind == "packs in"
                if not (self.total + k * m <= LIMIT if inward else k * m <= self.total):
                    continue
                verb = self._say(rng.choice(("buys", "gets", "finds") if inward else ("sells", "gives away", "loses")))
                self._step(f"{verb} {k} {packs} of {m}", k, "*", m, "+" if inward else "-")
                self.clauses.append(f"{verb} {k} {packs} " + (f"of {m}" if rng.random() < 0.7 else f"with {m} each"))
                return True
            if kind == "times" and 2 <= self.total <= 150:
                k = rng.randint(2, 5)
                if self.total * k > LIMIT:
                    continue
                word = self._say({2: "doubles", 3: "triples"}.get(k, f"times {k}"))
                self._step(word, self.total, "*", k)
                self.clauses.append(
                    self._say({2: "doubles them", 3: "triples them"}.get(k, f"makes it {k} times as many"))
                )
                return True
            if kind == "half" and self.total % 2 == 0 and self.total >= 4:
                verb = self._say(rng.choice(("gives half away", "sells half", "loses half", "gives half")))
                self._step(verb, self.total, "/", 2)
                to = (
                    f" of them to {self.other}"
                    if verb.startswith(("give half", "gives half", "gave half"))
                    else " of them"
                )
                self.clauses.append(verb + to if rng.random() < 0.6 and "away" not in verb else verb)
                return True
        return False

    def _share(self) -> str:
        fits = [k for k in range(2, 10) if self.total % k == 0 and self.total >= k * 2]
        if not fits:
            return ""
        k = self.rng.choice(fits)
        self._step(f"{k} friends", self.total, "/", k)
        return self.rng.choice(
            (
                f"{self.who} {'share' if self.first else 'shares'} them among {k} friends. How many does each get?",
                f"They are shared equally by {k} friends. How many does each friend get?",
            )
        )

    def _join(self) -> str:
        """The clauses as sentences, with up to two sentences among them that do not matter."""
        rng, text = self.rng, ""
        joiners = (
            ". Then {t} ",
            ", then {t} ",
            " and ",
            ". After that {t} ",
            ". Later {t} ",
            ". {W} ",
            ", ",
            " and then ",
            " and {t} ",
            ", and {t} ",
        )
        for clause in self.clauses:
            fresh = not text or text.endswith(".")
            told = text.endswith(".")  # after a sentence about something else the name has to stand again
            joiner = rng.choice(("{W} ", "Then {W} ") if told else ("{W} ", "{T} ", "Then {t} ") if fresh else joiners)
            spaced = " " if text.endswith(".") else ""
            text += spaced + joiner.format(t=self.they, T=self.they.capitalize(), W=self.who) + clause
            if rng.random() < 0.07:
                text += ". " + _distractor(rng, self.who, self.items)
        text += "" if not text or text.endswith(".") else "."
        return f"{_distractor(rng, self.who, self.items)} {text}" if rng.random() < 0.2 else text
