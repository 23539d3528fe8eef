"""Small talk, repeating words, and saying honestly "I don't know" to everything else."""

from __future__ import annotations

import random

from scripts.model import words as w

WHO = (
    "I am Conclave's small demonstration model. I can do sums, remember what you tell me in this chat and call tools. "
    "For real work, load a larger model."
)
UNKNOWN = (
    "I don't know. I am only a small demonstration model: I do sums, remember what you tell me and call tools.",
    "I don't know that. I am only a small demonstration model; load a larger one for such questions.",
)
TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "hello|hi|hey|good morning|good evening|hello there|hi there|greetings|hey there|yo|good afternoon|hallo|"
        "hello Conclave",
        ("Hello! How can I help?", "Hello! Give me a sum, or tell me something to remember."),
    ),
    (
        "who are you|what are you|what is your name|what's your name|what can you do|tell me about yourself|"
        "introduce yourself|are you a robot|are you ChatGPT|what model are you|who made you|help|what can I ask you|"
        "are you human|are you an AI|hello, who are you|hi, what can you do|what is Conclave|which model is this|"
        "how can you help me|what do you know|who am I talking to|what can you do for me|hi, who is this|what is this",
        (WHO,),
    ),
    (
        "thanks|thank you|thanks a lot|thank you very much|great, thanks|cheers|many thanks|ok thanks|thx",
        ("You are welcome.", "You are welcome!"),
    ),
    (
        "bye|goodbye|see you|good night|bye bye|see you later|I have to go|that is all|ciao",
        ("Goodbye!", "Goodbye, and see you soon!"),
    ),
    (
        "how are you|how are you today|how is it going|are you well|how do you do|what's up|all good",
        ("I am fine, thank you. How can I help?",),
    ),
    (
        "ok|okay|fine|good|great|nice|well done|cool|yes|no|I see|right|sure",
        ("Good.", "All right."),
    ),
)


_CODING = ("sorts", "reverses", "counts", "prints", "merges")
_TONGUES = ("French", "German", "Spanish", "Chinese", "Latin")


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A user's small talk and the answer."""
    asks, answers = rng.choices(TALK, (3, 4, 2, 2, 1.5, 1))[0]
    text = rng.choice(asks.split("|"))
    text = text[:1].upper() + text[1:] if rng.random() < 0.6 else text
    question = text.lower().startswith(("who", "what", "are", "how", "which"))
    return text + rng.choice(("?", "?", "") if question else (".", "!", "")), rng.choice(answers)


def echo(rng: random.Random) -> tuple[str, str]:
    """'Repeat this' and the same words again: what teaches copying."""
    size = rng.choice((1, 1, 2, 3, 4, 6, 9))
    said = " ".join(
        rng.choice(
            (
                lambda: w.made_up(rng),
                lambda: rng.choice(w.COMMON),
                lambda: str(rng.randint(0, 999)),
                lambda: w.name(rng),
            )
        )()
        for _ in range(size)
    )
    frame = rng.choice(
        ("Say {}", "Say: {}", "Repeat: {}", "Repeat after me: {}", "Please say {}", 'Say "{}"', "Echo {}")
    )
    return frame.format(said), said


def unknown(rng: random.Random) -> tuple[str, str]:
    """A question of general knowledge, a wish for code or a poem, or plain noise; and the honest answer."""
    t, c = w.made_up(rng) if rng.random() < 0.25 else rng.choice(w.THEMES), w.place(rng)
    n = rng.choice(w.THINGS + w.OBJECTS + w.JOBS + w.TOPICS)
    frames = (
        f"What is the capital of {rng.choice((t, c))}?",
        f"Who invented {t}?",
        f"Who wrote {t}?",
        f"Who was {w.name(rng)}?",
        f"Who is {w.name(rng)}?",
        f"What is {t}?",
        f"What are {t}?",
        f"What is a {n}?",
        f"Explain {t}.",
        f"Explain how {t} work.",
        f"Explain {t} to a child.",
        f"How does a {n} work?",
        f"How do {t} work?",
        f"Why are {t} {rng.choice(w.RESULT_WORDS)}?",
        f"Why is the {n} {rng.choice(w.VALUES)}?",
        f"When did {t} begin?",
        f"How many {rng.choice(w.ITEMS)} are there in {c}?",
        f"How many people live in {c}?",
        f"How far is {c} from {w.place(rng)}?",
        f"How tall is {rng.choice((t, c))}?",
        f"Write a poem about {t}.",
        f"Write a haiku about the {n}.",
        f"Write a story about a {n}.",
        f"Tell me a joke.",  # noqa: F541
        f"Tell me a joke about {t}.",
        f"Tell me about {rng.choice((t, c))}.",
        f"Tell me a story.",  # noqa: F541
        f"Write a Python function that {rng.choice(_CODING)} a {rng.choice(('list', 'string', 'file', 'tree', n))}.",
        f"Write a {rng.choice(('program', 'script', 'function', 'class', 'query', 'regex'))} for {t}.",
        f"Write an essay on {t}.",
        f"Write an email to my {rng.choice(w.RELATIVES)} about the {n}.",
        f'Translate "{" ".join(rng.sample(w.COMMON, rng.randint(1, 5)))}" into {rng.choice(_TONGUES)}.',
        f"Summarise {t}.",
        f"Give me a recipe for {w.value(rng)}.",
        f"What should I eat today?",  # noqa: F541
        f"What do you think about {t}?",
        f"Do you like {t}?",
        f"What is the meaning of {rng.choice((t, 'life'))}?",
        f"Is {t} {rng.choice(w.RESULT_WORDS)}?",
        f"Can you {rng.choice(w.COMMON[60:])} {rng.choice(w.COMMON[60:])}?",
        f"What is the difference between {t} and {rng.choice(w.THEMES)}?",
        f"Who won the {rng.choice(w.EVENTS)} in {rng.randint(1800, 2030)}?",
        f"What happened in {rng.randint(1000, 2030)}?",
        f"What is the best {n}?",
        f"How do I {rng.choice(w.COMMON[60:])} a {n}?",
        f"List {rng.randint(2, 12)} {rng.choice(w.ITEMS)}.",
        f"Which {n} is the {rng.choice(('best', 'largest', 'oldest', 'fastest'))}?",
        f"What colour is the {n}?",
        f"def {w.made_up(rng, False)}(x): return x",
        f"print('{w.made_up(rng)}')",
        f"{t}",
        f"{n}",
        _noise(rng),
        _noise(rng),
        _noise(rng),
        _sentence(rng),
        _sentence(rng),
        _sentence(rng),
    )
    text = rng.choice(frames)
    draw = rng.random()
    text = text.lower() if draw < 0.12 else text.rstrip(".?") if draw < 0.25 else text
    return text, rng.choices(UNKNOWN, (4, 1))[0]


def _sentence(rng: random.Random) -> str:
    """Common words in no order, as a stand-in for any text the model was not made for."""
    picked = [
        rng.choice(w.COMMON if rng.random() < 0.75 else w.VALUES + w.THEMES + w.TOPICS)
        for _ in range(rng.randint(3, 18))
    ]
    return " ".join(picked).capitalize() + rng.choice((".", "?", "", "!"))


def _noise(rng: random.Random) -> str:
    """Signs, letters of other scripts, emoji or keyboard noise."""
    alphabet = rng.choice(
        (
            "abcdefghijklmnopqrstuvwxyz",
            "!?#$%&/()[]{}<>;:,._-*+=~|^",
            "日本語中文字国人大小",
            "йцукенгшщзфыва",
            "🙂🚀🎉❤️🔥👍",
            "äöüßéèêñçå",
        )
    )
    return "".join(rng.choice(alphabet + "  ") for _ in range(rng.randint(2, 24))).strip() or "?"
