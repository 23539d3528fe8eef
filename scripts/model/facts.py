"""Facts that a user tells, the questions about them, and the honest answer where nothing was told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scripts.model import words as w


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: how it is told, asked for, answered, and refused when never told; `key` says what it is about."""

    key: str
    tell: str
    ask: str
    answer: str
    unknown: str


def _called(rng: random.Random) -> Fact:
    n = rng.choice(w.THINGS if rng.random() < 0.75 else w.RELATIVES)
    v = w.name(rng) + (f" {w.name(rng)}" if rng.random() < 0.06 else "")
    tell = rng.choice(
        (
            f"my {n} is called {v}",
            f"my {n} is called {v}",
            f"my {n}'s name is {v}",
            f"I have a {n} called {v}",
            f"the name of my {n} is {v}",
            f"I have a {n} named {v}",
            f"my {n} is named {v}",
            f"I named my {n} {v}",
        )
    )
    ask = rng.choice(
        (
            f"What is my {n} called?",
            f"What is my {n} called?",
            f"what is my {n} called",
            f"What is my {n}'s name?",
            f"what's my {n}'s name?",
            f"What's the name of my {n}?",
            f"What is the name of my {n}?",
            f"Do you remember what my {n} is called?",
            f"Do you know my {n}'s name?",
            f"What did I say my {n} is called?",
            f"Tell me my {n}'s name.",
        )
    )
    return Fact(f"my {n}", tell, ask, f"Your {n} is called {v}.", f"You have not told me what your {n} is called.")


def _theirs(rng: random.Random) -> Fact:
    who, n, v = w.name(rng), rng.choice(w.THINGS), w.name(rng)
    tell = rng.choice((f"{who}'s {n} is called {v}", f"{who} has a {n} called {v}", f"{who}'s {n} is named {v}"))
    ask = rng.choice(
        (f"What is {who}'s {n} called?", f"what's the name of {who}'s {n}?", f"Do you know what {who}'s {n} is called?")
    )
    return Fact(
        f"{who}'s {n}", tell, ask, f"{who}'s {n} is called {v}.", f"You have not told me what {who}'s {n} is called."
    )


def _favourite(rng: random.Random) -> Fact:
    k, v = rng.choice(w.FAVOURITES), w.value(rng)
    f = rng.choice(("favourite", "favorite", "favourite"))
    tell = rng.choice((f"my {f} {k} is {v}", f"my {f} {k} is {v}", f"{v} is my {f} {k}"))
    ask = rng.choice((f"What is my {f} {k}?", f"what's my {f} {k}?", f"Which {k} is my {f}?", f"Tell me my {f} {k}."))
    return Fact(f"fav {k}", tell, ask, f"Your {f} {k} is {v}.", f"You have not told me your {f} {k}.")


def _code(rng: random.Random) -> Fact:
    k, v = rng.choice(w.CODES), str(rng.randint(1, 10 ** rng.randint(1, 5)))
    if rng.random() < 0.15:
        v = rng.choice("ABCDEFGHKLMNPRSTXZ") + v
    tell = rng.choice((f"my {k} is {v}", f"the {k} is {v}", f"my {k} is {v}"))
    my = "the" if tell.startswith("the") else "my"
    ask = rng.choice((f"What is {my} {k}?", f"what's {my} {k}?", f"Do you remember {my} {k}?", f"Tell me {my} {k}."))
    your = "the" if my == "the" else "your"
    return Fact(f"code {k}", tell, ask, f"{your.capitalize()} {k} is {v}.", f"You have not told me {your} {k}.")


def _me(rng: random.Random) -> Fact:
    v, p = w.name(rng), w.place(rng)
    kind = rng.randrange(6)
    if kind <= 1:
        tell = rng.choice((f"my name is {v}", f"I am {v}", f"I'm {v}", f"call me {v}", f"my name is {v}"))
        ask = rng.choice(
            ("What is my name?", "what's my name?", "Who am I?", "Do you know my name?", "What am I called?")
        )
        return Fact("name", tell, ask, f"Your name is {v}.", "You have not told me your name.")
    if kind == 2:
        tell = rng.choice((f"I live in {p}", f"my home is in {p}", f"I live in {p}"))
        ask = rng.choice(
            ("Where do I live?", "where do I live", "Do you know where I live?", "In which city do I live?")
        )
        return Fact("live", tell, ask, f"You live in {p}.", "You have not told me where you live.")
    if kind == 3:
        tell = rng.choice((f"I was born in {p}", f"I come from {p}", f"I am from {p}"))
        ask = rng.choice(("Where am I from?", "Where was I born?", "Where do I come from?"))
        return Fact("from", tell, ask, f"You come from {p}.", "You have not told me where you come from.")
    if kind == 4:
        job = rng.choice(w.JOBS)
        tell = rng.choice((f"I work as a {job}", f"I am a {job}", f"my job is {job}"))
        ask = rng.choice(("What is my job?", "What do I do for a living?", "What do I work as?"))
        return Fact("job", tell, ask, f"You work as a {job}.", "You have not told me your job.")
    age = rng.randint(6, 98)
    if rng.random() < 0.5:
        return Fact(
            "age",
            f"I am {age} years old",
            "How old am I?",
            f"You are {age} years old.",
            "You have not told me how old you are.",
        )
    r = rng.choice(w.RELATIVES)
    return Fact(
        f"age {r}",
        f"my {r} is {age} years old",
        f"How old is my {r}?",
        f"Your {r} is {age} years old.",
        f"You have not told me how old your {r} is.",
    )


def _lives(rng: random.Random) -> Fact:
    r, p = rng.choice(w.RELATIVES), w.place(rng)
    ask = rng.choice((f"Where does my {r} live?", f"where does my {r} live"))
    return Fact(
        f"live {r}",
        f"my {r} lives in {p}",
        ask,
        f"Your {r} lives in {p}.",
        f"You have not told me where your {r} lives.",
    )


def _event(rng: random.Random) -> Fact:
    e = rng.choice(w.EVENTS)
    when = rng.choice(
        (f"on {rng.choice(w.DAYS)}", f"at {rng.randint(1, 12)}", f"at {rng.randint(7, 22)}:{rng.choice('0134')}0")
    )
    my = rng.choice(("the", "my"))
    your = "your" if my == "my" else "the"
    ask = rng.choice((f"When is {my} {e}?", f"when is {my} {e}", f"Do you know when {my} {e} is?"))
    return Fact(
        f"when {e}",
        f"{my} {e} is {when}",
        ask,
        f"{your.capitalize()} {e} is {when}.",
        f"You have not told me when {your} {e} is.",
    )


def _where(rng: random.Random) -> Fact:
    o, s = rng.choice(w.OBJECTS), rng.choice(w.SPOTS)
    my = rng.choice(("the", "my"))
    your = "your" if my == "my" else "the"
    tell = rng.choice((f"{my} {o} is in the {s}", f"I put {my} {o} in the {s}", f"I left {my} {o} in the {s}"))
    ask = rng.choice((f"Where is {my} {o}?", f"where is {my} {o}", f"Where did I put {my} {o}?"))
    return Fact(
        f"where {o}",
        tell,
        ask,
        f"{your.capitalize()} {o} is in the {s}.",
        f"You have not told me where {your} {o} is.",
    )


_MAKERS: tuple[tuple[Callable[[random.Random], Fact], ...], tuple[float, ...]] = (
    (_called, _theirs, _favourite, _code, _me, _lives, _event, _where),
    (6, 1.2, 2.5, 2, 3, 0.8, 1.5, 1.5),
)


def fact(rng: random.Random) -> Fact:
    """A fact of any kind."""
    return rng.choices(*_MAKERS)[0](rng)


def new_fact(rng: random.Random, known: list[Fact]) -> Fact:
    """A fact about something that none of `known` is about."""
    keys = {f.key for f in known}
    while True:
        # Often of a kind already told, so that neighbours ("my cat", "my dog") have to be kept apart.
        made = _called(rng) if known and known[-1].key.startswith("my ") and rng.random() < 0.4 else fact(rng)
        if made.key not in keys:
            return made


def telling(rng: random.Random, facts: list[Fact]) -> tuple[str, str]:
    """A user's message that tells `facts`, and the assistant's acknowledgement."""
    said = " and ".join(f.tell for f in facts) if rng.random() < 0.6 else ". ".join(_capital(f.tell) for f in facts)
    lead = rng.choice(
        (
            "",
            "",
            "",
            "",
            "Remember: ",
            "Please remember that ",
            "Hi, ",
            "Hello! ",
            "By the way, ",
            "Note that ",
            "Just so you know: ",
        )
    )
    text = lead + said if lead and not lead.endswith("! ") else lead + _capital(said)
    text = _capital(text) if rng.random() < 0.75 else text
    text += rng.choice((".", ".", ".", "", "!"))
    noted = ", ".join(_uncapital(f.answer[:-1]) for f in facts)
    return text, rng.choices((f"Noted: {noted}.", "Noted.", "I will remember that."), (5, 2, 2))[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _uncapital(text: str) -> str:
    return text[:1].lower() + text[1:] if text.startswith(("Your ", "You ", "The ")) else text
