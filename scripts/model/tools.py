"""Tool calls in Hermes form: tools with many names and key orders, requests, results, and what is not listed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from scripts.model import words as w

NO_TOOL = "I have no tool for that."
_VERBS = (
    "get find check set send open start stop book play add delete show print read update fetch search order track"
).split()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that does `verb` to `topic`; `params` are (name, JSON type), at most three."""

    verb: str
    topic: str
    params: tuple[tuple[str, str], ...]
    schema: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's name, as listed."""
        return self.schema["function"]["name"]


def tool(rng: random.Random, taken: set[str], wordy: bool = False) -> Tool:
    """A tool for a topic that is not in `taken`; the topic is added to it. `wordy` describes it at more length."""
    topic = rng.choice([t for t in w.TOPICS if t not in taken]) if rng.random() < 0.8 else w.made_up(rng, False)
    taken.add(topic)
    verb = rng.choice(_VERBS)
    count = rng.choices((0, 1, 2, 3), (0.5, 7, 2.5, 0.5))[0]
    names = rng.sample([f for f in w.FIELDS + w.COUNTS if f != topic], count)
    params = tuple((n, "string" if n in w.FIELDS else rng.choice(("integer", "number"))) for n in names)
    name = rng.choice((f"{verb}_{topic}", f"{verb}_{topic}", f"{verb}_{topic}", f"{topic}_{verb}", topic))
    described = [f"{verb} the {topic}"] + ([f" for a {params[0][0]}"] if params and rng.random() < 0.5 else [])
    text = "".join(described)
    text = text[:1].upper() + text[1:] + rng.choice((".", ""))
    if wordy and rng.random() < 0.6:
        text = _wordy(rng, verb, topic, params)
    properties: dict[str, Any] = {}
    for n, kind in params:
        described_as = {"description": f"The {n}"} if rng.random() < (0.6 if wordy else 0.25) else {}
        properties[n] = _shuffled(rng, {"type": kind, **described_as})
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.6:
        parameters["required"] = list(names)
    function = {"name": name, "description": text, "parameters": _shuffled(rng, parameters)}
    if rng.random() < 0.15:
        del function["description"]
    return Tool(verb, topic, params, _shuffled(rng, {"type": "function", "function": _shuffled(rng, function)}))


def _wordy(rng: random.Random, verb: str, topic: str, params: tuple[tuple[str, str], ...]) -> str:
    """A description as people write them: with adjectives, articles and what it is for."""
    article = rng.choice(("the", "a", "the current", "the latest", "the whole", ""))
    text = f"{verb} {article} {topic}".replace("  ", " ")
    if params:
        text += rng.choice(("", " for a {p}", " of a {p}", " to a {p}", " by {p}", " in a given {p}")).format(
            p=params[0][0]
        )
    return text[:1].upper() + text[1:] + rng.choice((".", "", "", " and return it."))


def _shuffled(rng: random.Random, made: dict[str, Any]) -> dict[str, Any]:
    """The same keys in the usual order (half the time), sorted as Jinja's own filter does, or in any order."""
    keys = list(made)
    draw = rng.random()
    if draw < 0.25:
        keys.sort()
    elif draw < 0.5:
        rng.shuffle(keys)
    return {k: made[k] for k in keys}


def request(rng: random.Random, wanted: Tool, wordy: bool = False) -> tuple[str, dict[str, Any]]:
    """A user's request that needs `wanted`, and the arguments of the call, in the order of the schema."""
    arguments: dict[str, Any] = {}
    for n, kind in wanted.params:
        if kind == "string":
            arguments[n] = rng.choice((w.name, w.place, w.value, w.name))(rng)
            if rng.random() < 0.1:
                arguments[n] += f" {w.name(rng)}"
        else:
            arguments[n] = rng.randint(1, rng.choice((10, 99, 500)))
    values = [(n, arguments[n]) for n, _ in wanted.params]
    joined = ""
    if values:
        n, v = values[0]
        plain = rng.choice(
            (f" for {v}", f" for {v}", f" of {v}", f" in {v}", f" for the {n} {v}", f" with {n} {v}", f" at {v}")
        )
        if wordy and wanted.params[0][1] != "string" and rng.random() < 0.5:
            plain = f" for {v} {n}"
        joined = plain + "".join(f" {rng.choice(('and', 'with', 'and the'))} {n} {v}" for n, v in values[1:])
    verb, topic = wanted.verb, wanted.topic
    frames = [
        f"{verb} the {topic}{joined}",
        f"{verb} the {topic}{joined}",
        f"please {verb} the {topic}{joined}",
        f"can you {verb} the {topic}{joined}?",
        f"I need the {topic}{joined}",
        f"use the tool for the {topic}{joined}",
    ]
    if verb in ("get", "find", "check", "show", "read", "fetch", "search", "track", "print"):
        frames += [f"what is the {topic}{joined}?"] * 3 + [
            f"what's the {topic}{joined}?",
            f"how is the {topic}{joined}?",
        ]
    text = rng.choice(frames)
    text = text[:1].upper() + text[1:] if rng.random() < 0.75 else text
    return text + ("" if text.endswith("?") or rng.random() < 0.4 else "."), arguments


def call(wanted: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """The assistant's message that calls `wanted`."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": wanted.name, "arguments": arguments}}],
    }


def result(rng: random.Random, wanted: Tool, arguments: dict[str, Any]) -> tuple[str, str]:
    """What the tool gave back (a JSON object or a plain text), and the assistant's answer from it."""
    about = f"The {wanted.topic}" + (f" for {next(iter(arguments.values()))}" if arguments else "")
    draw = rng.random()
    if draw < 0.12:
        reason = rng.choice(("not found", "no access", "timeout", "unknown name", "out of order", "try later"))
        return rng.choice((json.dumps({"error": reason}), f"error: {reason}")), f"The tool failed: {reason}."
    if draw < 0.4:
        word = rng.choice(
            (
                rng.choice(w.RESULT_WORDS),
                str(rng.randint(0, 999)),
                f"{rng.randint(0, 99)} {rng.choice(w.COUNTS)}",
                w.name(rng),
            )
        )
        text = f"{word}, {rng.choice(w.RESULT_WORDS)}" if rng.random() < 0.3 else word
        return text, f"{about}: {text}."
    keys = rng.sample(w.RESULT_KEYS, rng.choices((1, 2, 3), (4, 4, 2))[0])
    if rng.random() < 0.1:
        keys[0] = w.made_up(rng, False)
    made: dict[str, Any] = {
        k: rng.choice((rng.choice(w.RESULT_WORDS), rng.randint(0, 99), rng.randint(0, 9999), w.name(rng))) for k in keys
    }
    told = ", ".join(f"{k} {v}" for k, v in made.items())
    echoed = {k: v for k, v in arguments.items() if rng.random() < 0.35 and k not in made}
    both = {**echoed, **made} if rng.random() < 0.7 else {**made, **echoed}
    return json.dumps(both, ensure_ascii=False), f"{about}: {told}."
